"""Why an image file cannot be used. Runs anywhere."""


class BadImageError(Exception):
    """The image cannot be used; the message is the reason that quarantine records."""


class NoImageError(BadImageError):
    """A file that is no image by its name nor by its content: it is passed over, and told."""
