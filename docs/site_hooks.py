"""What `mkdocs build` does beyond its configuration: README.md is the start page, and links that
leave docs/ find their files.

On GitHub pages link to each other and to files of the repository by relative paths. MkDocs knows
docs/ alone. So a file that a page links to is taken into the site at ``repository/<path>``, pages
among them as pages, and the link is rewritten. A directory leads to its README.md; one without
fails the strict build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
START = "README.md"  # is the page index.md of the site
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
SHIM = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"></script>')
# Browsers start no worker from a disk. The search runs in a hidden frame there instead: the
# plugin `offline` would fetch a program for that from the network.
FRAME_AS_WORKER = """<script>
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow;
      this.inner.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.loaded = new Promise((done) => {
        const script = frame.contentDocument.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = done;
        frame.contentDocument.body.append(script);
      });
    }
    postMessage(data) {
      this.loaded.then(() => {
        this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }));
      });
    }
    terminate() {}
  };
}
</script>"""
CODE = re.compile(r"^```.*?^```|^(?: {4}[^\n]*\n)+|`[^`\n]+`", re.S | re.M)


def place_in_site(path: str) -> str:
    """``docs/x -> x``, ``README.md -> index.md``, others to ``repository/``."""
    if path == START:
        return "index.md"
    inside = path.removeprefix("docs/")
    return inside if inside != path else f"repository/{path}"


def place_in_repository(uri: str) -> str:
    """The other way round."""
    if uri == "index.md":
        return START
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def target_of(path: str, link: str) -> str | None:
    """The file of the repository that a link of the page ``path`` leads to; None if to none."""
    if re.match(r"[a-z]+:", link) or link.startswith("/"):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if (ROOT / target).is_dir():
        target += "/README.md"
    return target if (ROOT / target).is_file() else None


def outside_code(text: str, change: Any) -> str:
    """``change`` applied to all that is no code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes in the start page and, from page to page, what is linked to."""
    waiting = ["README.md", *(place_in_repository(f.src_uri) for f in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        uri = place_in_site(path)
        if files.get_file_from_path(uri) is None:
            file = File.generated(config, uri, abs_src_path=str(ROOT / path))
            if uri.startswith("repository/"):
                file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
        if not path.endswith(".md"):
            continue
        for match in LINK.finditer((ROOT / path).read_text()):
            target = target_of(path, match.group(1))
            if target is not None and target not in seen:
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links by their places in the site."""
    path, uri = place_in_repository(page.file.src_uri), page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        target = target_of(path, match.group(1))
        if target is None:
            return match.group()
        relative = posixpath.relpath(place_in_site(target), posixpath.dirname(uri) or ".")
        return f"]({relative}{match.group(2) or ''})"

    return outside_code(markdown, lambda text: LINK.sub(rewritten, text))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Nothing is fetched from elsewhere."""
    return SHIM.sub(lambda _: FRAME_AS_WORKER, output)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Nor by the page for what is not found."""
    return SHIM.sub(lambda _: FRAME_AS_WORKER, output_content)
