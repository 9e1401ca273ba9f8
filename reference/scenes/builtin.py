"""Scenes that need no files: what `verify` and benchmarks use where none is named."""

from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject


def builtin_scenes() -> list[Scene]:
    """Three drawn scenes: no references, one subject, unequal subjects with a background."""
    from PIL import Image

    def picture(hue: int) -> Image.Image:
        ramp = Image.linear_gradient("L").resize((96, 96))
        plain = Image.new("L", ramp.size, 200)
        return Image.merge("HSV", (Image.new("L", ramp.size, hue), plain, ramp)).convert("RGB")

    words = ("woman", "red hat", "blue coat", "man", "green scarf", "garden")
    cards = {word: Reference(word, picture(40 * i)) for i, word in enumerate(words)}
    woman = Subject((cards["woman"], cards["red hat"], cards["blue coat"]))
    man = Subject((cards["man"], cards["green scarf"]))
    alone = "A woman with a red hat and a blue coat waves."
    both = "In a garden, a woman with a red hat and a blue coat meets a man in a green scarf."
    return [
        Scene("no-references", "A quiet lake at dawn, seen from above."),
        Scene("one-subject", alone, subjects=(woman,)),
        Scene("two-subjects", both, background=cards["garden"], subjects=(woman, man)),
    ]
