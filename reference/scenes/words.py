"""The text as the encoder sees it, before it is cut into tokens."""

import html
import re


def clean_text(text: str) -> str:
    """Captions and words are cleaned the same way: encoding, entities, white space (SPEC 5).

    Repairs broken encodings (ftfy), unescapes HTML twice, strips, collapses white space. Case and
    punctuation stay.
    """
    import ftfy  # slow to import, and not every user of a scene cleans text

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
