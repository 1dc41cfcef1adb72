"""Where the files are that come with the server but are not code: the example page."""

from pathlib import Path


def example_folder() -> Path:
    """The folder of the example page: static/example/ of a checkout; server/example/ inside the package where
    the server is installed (setup.py maps the one to the other).

    Raises FileNotFoundError if the page is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "example", package.parent / "static" / "example"):
        if (folder / "index.html").is_file():
            return folder
    raise FileNotFoundError(f"the example page is missing: no index.html in {folder}")
