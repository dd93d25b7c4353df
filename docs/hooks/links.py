"""Link the site's pages to the repository's files.

A page is written so that its links work where the file is read in the repository. On the site a link to a module leads
to its page in the reference, a link to a page outside `docs/` to the site's copy, and any other file is shown as it is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from reference import api_uri, modules

ROOT = Path(__file__).resolve().parents[2]

INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "maintainers/contributing.md",
    "SECURITY.md": "security.md",
    "cluster/README.md": "tutorials/clusters.md",
    "benchmarks/PROFILE.md": "benchmarks/profile.md",
}
"""Pages of the repository that the site has, too, by their path there: path on the site."""

_SHOWN = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".sh": "bash",
    ".sbatch": "bash",
    ".toml": "toml",
    ".json": "json",
    "": "text",
}
"""Languages of the files that are shown as text, by suffix."""
_IMAGES = {".png", ".svg", ".gif"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def included_pages() -> dict[str, str]:
    """Return the text of the repository's own pages, by path on the site."""
    return {uri: (ROOT / path).read_text() for path, uri in INCLUDED.items()}


def source(uri: str) -> str:
    """Return where a page of the site is in the repository, relative to its root."""
    return {site: path for path, site in INCLUDED.items()}.get(uri, f"docs/{uri}")


def repository_links(markdown: str, uri: str) -> Iterator[str]:
    """Return paths in the repository that a page links to and the site's pages do not have, relative to the root."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    _each_link(markdown, uri, note)
    return (path for path in found if not path.startswith("docs/") and path not in INCLUDED)


def linked_files(pages: Mapping[str, str]) -> dict[str, str | Path]:
    """Return what the site has to hold beside its pages, by path on the site: text of a page, or a file to copy.

    Args:
        pages: Markdown by path on the site.
    """
    files: dict[str, str | Path] = {}
    for uri, markdown in pages.items():
        for path in repository_links(markdown, uri):
            for name in (path, *_children(path)):
                target = page_of(name)
                if target not in pages and target not in files:
                    files[target] = _shown(name)
    return files


def rewrite(markdown: str, uri: str) -> str:
    """Return the Markdown of the page at `uri` with links that lead to pages of the site."""
    return _each_link(
        markdown, uri, lambda path: posixpath.relpath(page_of(path), posixpath.dirname(uri) or ".")
    )


def page_of(path: str) -> str:
    """Return the path on the site of a file or folder of the repository.

    Raises:
        FileNotFoundError: If the repository has no such file.
    """
    if path in INCLUDED:
        return INCLUDED[path]
    if path == "README.md":
        return "index.md"
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which the repository does not have")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module in modules():
        return api_uri(module)
    shown = "files/" + "/".join(part.lstrip(".") for part in path.split("/"))  # the site has no hidden files
    if (ROOT / path).is_dir():
        return f"{shown}/index.md"
    return shown if Path(path).suffix in _IMAGES else f"{shown}.md"


def _each_link(markdown: str, uri: str, change: Callable[[str], str]) -> str:
    """Replace the target of each link outside code by what `change` makes of its path in the repository.

    Links within `docs/` stay.
    """
    here = source(uri)

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        stays = here.startswith("docs/") and path.startswith("docs/")
        return match[0] if stays else change(path) + (match[2] or "")

    lines, fence = [], ""
    for line in markdown.splitlines(keepends=True):
        if (found := re.match(r"\s*(`{3,})", line)) and fence in ("", found[1]):
            fence = "" if fence else found[1]
        lines.append(line if fence else _LINK.sub(replace, line))
    return "".join(lines)


def _children(path: str) -> list[str]:
    """Return files of a folder that its page links to."""
    folder = ROOT / path
    if not folder.is_dir():
        return []
    return [
        f"{path}/{file.name}" for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _SHOWN
    ]


def _shown(path: str) -> str | Path:
    """Return a page with a file's text or a folder's files; the file itself where it is an image."""
    file = ROOT / path
    if file.suffix in _IMAGES:
        return file
    if file.is_dir():
        here = posixpath.dirname(page_of(path))
        items = [
            f"- [`{Path(child).name}`]({posixpath.relpath(page_of(child), here)})"
            for child in _children(path)
        ]
        return f"# `{path}/`\n\n" + "\n".join(items) + "\n"
    if file.suffix not in _SHOWN:
        return f"# `{path}`\n\nThis file is in the repository.\n"
    text = file.read_text()
    fence = "`" * 4
    return f"# `{path}`\n\n{fence}{_SHOWN[file.suffix]}\n{text}\n{fence}\n"
