"""Pictures for people: contact sheets, layouts, pages, and the text on them."""
