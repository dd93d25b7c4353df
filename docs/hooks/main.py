"""The hook of `mkdocs.yml`: add pages made from the code, and rewrite links to files of the repository."""

from __future__ import annotations

import links
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the repository's own pages and the files that pages link to."""
    pages = {**reference.pages(), **links.included_pages()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, target in links.linked_files(written).items():
        if isinstance(target, str):
            files.append(File.generated(config, uri, content=target))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(target)))
    section = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    settings = next(entry for entry in section if "Settings" in entry)
    settings["Settings"] = reference.settings_navigation()
    section.append({"Python API": reference.api_navigation()})
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that leave `docs/`."""
    return links.rewrite(markdown, page.file.src_uri)
