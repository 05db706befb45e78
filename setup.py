"""The one part of the package's description that is computed: the long description, with absolute links.

README.md links to files of the repository, which an index such as PyPI does not have. Everything else is in
pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def long_description(readme: str, repository: str) -> str:
    """README with absolute links: pictures to the files themselves, other links to the pages that show them.

    Args:
        readme: Markdown with links relative to the repository's root.
        repository: its address, without a slash at the end.
    """
    return LINK.sub(
        lambda link: f"{link[1]}[{link[2]}]({repository}/{'raw' if link[1] else 'blob'}/main/{link[3]})", readme
    )


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=long_description(readme, project["urls"]["Repository"]),
        long_description_content_type="text/markdown",
    )
