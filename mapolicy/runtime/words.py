"""Numbers in sentences."""


def size_in_words(count: int) -> str:
    """A number of bytes: "5.6 GiB", "4.3 MiB", "12 KiB"."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return plural(count, "byte")


def plural(count: int, what: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def plural_are(count: int, what: str) -> str:
    """A number with its noun and verb: "1 image is", "2 images are"."""
    return f"{plural(count, what)} {'is' if count == 1 else 'are'}"
