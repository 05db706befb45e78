"""Numbers in sentences."""


def plural(count: int, what: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def plural_are(count: int, what: str) -> str:
    """A number with its noun and verb: "1 image is", "2 images are"."""
    return f"{plural(count, what)} {'is' if count == 1 else 'are'}"
