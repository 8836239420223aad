"""How the pages look and speak: theme, style sheet, and small pieces of HTML in which everything foreign is escaped.

No font, script or picture comes from elsewhere. What a model wrote is shown as Markdown without HTML and without
pictures, so that an answer can make a browser ask nobody. Refuses to know engines and the store.
"""

from __future__ import annotations

import base64
import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from html import escape
from importlib import resources
from typing import Any

import gradio as gr
from gradio.context import Context
from markdown_it import MarkdownIt

from luthier.errors import LuthierError, MediaError, RequestError
from luthier.serve.store import owner_of

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""What every event of every page is given: none is offered to programs, which have an interface of their own."""
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_COLOURS = {
    **dict.fromkeys(("body_background_fill", "background_fill_secondary"), "var(--page)"),
    **dict.fromkeys(("background_fill_primary", "block_background_fill", "input_background_fill"), "var(--card)"),
    **dict.fromkeys(("input_background_fill_focus", "input_background_fill_hover"), "var(--card)"),
    **dict.fromkeys(("body_text_color", "block_title_text_color", "accordion_text_color"), "var(--ink)"),
    **dict.fromkeys(("checkbox_label_text_color", "table_text_color", "button_secondary_text_color"), "var(--ink)"),
    **dict.fromkeys(("body_text_color_subdued", "block_info_text_color", "input_placeholder_color"), "var(--soft)"),
    **dict.fromkeys(("block_label_text_color", "button_secondary_text_color_hover"), "var(--ink)"),
    **dict.fromkeys(("border_color_primary", "block_border_color", "panel_border_color"), "var(--line)"),
    **dict.fromkeys(("input_border_color", "checkbox_border_color", "button_secondary_border_color"), "var(--edge)"),
    **dict.fromkeys(("border_color_accent", "input_border_color_focus", "slider_color"), "var(--a)"),
    **dict.fromkeys(("link_text_color", "link_text_color_hover", "link_text_color_visited"), "var(--a)"),
    **dict.fromkeys(("checkbox_background_color_selected", "checkbox_border_color_selected"), "var(--a)"),
    **dict.fromkeys(("button_primary_background_fill", "button_primary_border_color"), "var(--a)"),
    **dict.fromkeys(("button_primary_background_fill_hover", "loader_color"), "var(--a)"),
    **dict.fromkeys(("button_primary_text_color", "button_primary_text_color_hover"), "var(--page)"),
    **dict.fromkeys(("button_secondary_background_fill", "block_label_background_fill"), "var(--card)"),
    **dict.fromkeys(("button_secondary_background_fill_hover", "checkbox_label_background_fill"), "var(--wash)"),
    **dict.fromkeys(("panel_background_fill", "code_background_fill", "table_odd_background_fill"), "var(--wash)"),
    **dict.fromkeys(("button_cancel_background_fill", "button_cancel_background_fill_hover"), "var(--card)"),
    **dict.fromkeys(("button_cancel_text_color", "button_cancel_border_color"), "var(--bad)"),
}


def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return (resources.files("luthier.serve") / "assets" / name).read_text(encoding="utf-8")


def mount_options() -> dict[str, Any]:
    """What `gr.mount_gradio_app` is given for the look, besides the limits of the server."""
    theme = gr.themes.Base(font=list(_FONTS), font_mono=list(_MONO)).set(
        **_COLOURS,
        **{f"{name}_dark": value for name, value in _COLOURS.items()},
        **dict.fromkeys(("input_border_width", "button_border_width", "block_border_width"), "1px"),
        **dict.fromkeys(("block_radius", "input_radius", "button_large_radius", "button_medium_radius"), "8px"),
        button_large_text_weight="500",
        layout_gap="0.8rem",
    )
    head = f'<meta name="color-scheme" content="light dark"><style>{asset("frame.css")}</style>'
    head += f"<script>{asset('keys.js')}</script>"
    charts = (resources.files("luthier.outcome") / "templates" / "chart.css.j2").read_text(encoding="utf-8")
    return {"theme": theme, "css": asset("look.css") + charts, "head": head, "footer_links": [], "run_history": False}


def on_load(function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Call a function each time that the page which is being built is opened."""
    root = Context.root_block
    assert root is not None, "a page is built inside gr.Blocks"
    root.load(function, inputs, outputs, **PRIVATE)


def visitor() -> gr.BrowserState:
    """The random token by which a browser finds its own conversations again, on every page and after a reload.

    It lies in the browser's storage, in a wrapping that keeps nobody out: whoever can read that storage is the visitor.
    """
    return gr.BrowserState("", storage_key="luthier-visitor", secret="luthier")


def owner(given: Any) -> str:
    """Who a page's visitor is in the store. Raises RequestError while the page has no token yet."""
    if token_of(given) != given:
        raise RequestError("this page has not finished loading", "wait a moment, or load it again")
    return owner_of(given)


def token_of(given: Any) -> str:
    """The visitor's token, or a new one where the browser has none yet."""
    return given if isinstance(given, str) and 20 <= len(given) <= 100 else secrets.token_urlsafe(24)


def typed(value: Any) -> str:
    """What was typed into a box, as text that every file can hold."""
    return str(value or "").replace("\0", "").encode(errors="replace").decode().strip()


def guarded(function: Callable[..., Any], line: Any) -> Callable[..., Any]:
    """The same function for an event, with refusals and faults told in `line`, a component for `said`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*given: Any, **more: Any) -> Iterator[Any]:
            try:
                yield from function(*given, **more)
            except LuthierError as error:
                yield {line: sentence(error)}
            except Exception:
                yield {line: sentence(_fault(function))}

        return stream

    @functools.wraps(function)
    def call(*given: Any, **more: Any) -> Any:
        try:
            return function(*given, **more)
        except LuthierError as error:
            return {line: sentence(error)}
        except Exception:
            return {line: sentence(_fault(function))}

    return call


def _fault(function: Callable[..., Any]) -> LuthierError:
    """What a page says of a fault of ours, whose traceback goes to the log: it may name files."""
    logging.getLogger(__name__).exception("a page's event failed: %s", function.__name__)
    return LuthierError("something failed in the server, which is not your doing", "look into its log, or try again")


def page_head(title: str, lead: str) -> None:
    """What every page begins with: the bar of pages, a link that leaps over the settings, its title and purpose."""
    gr.Navbar(main_page_name="Assistant")
    gr.HTML(
        f'<a class="skip" href="#main">Skip to the main part</a><div class="pagehead"><h1>{escape(title)}</h1>'
        f"<p>{escape(lead)}</p></div>"
    )


def absent(reason: str) -> None:
    """Says why a page has nothing to work with."""
    gr.HTML(f'<div class="absent" role="note">{escape(reason)}</div>')


def said(text: str, kind: str = "") -> str:
    """A line that tells what goes on; `kind`: "" for news, good, or bad (read out at once by a screen reader)."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="said {kind}" role="{role}">{escape(text)}</div>'


def sentence(error: LuthierError) -> str:
    """What a page says of a request that cannot be met: what is wrong, and the mend."""
    what = error.detail if isinstance(error, MediaError) else error.message
    parts = [f"{part[:1].upper()}{part[1:].removesuffix('.')}." for part in (what, error.mend) if part]
    return said(" ".join(parts), "bad")


@lru_cache(maxsize=512)
def markdown(text: str) -> str:
    """Markdown as HTML in which no HTML of the text's own is left, links leave no trace and pictures are links."""
    return f'<div class="words">{_renderer().render(text)}</div>'


def exact(text: str) -> str:
    """A text as it was typed."""
    return f'<div class="words exact">{escape(text)}</div>'


def data_address(data: bytes, kind: str) -> str:
    """Bytes as a `data:` address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def download(name: str, data: bytes, kind: str, words: str) -> str:
    """A link that saves bytes as a file, without a file on the server."""
    return f'<a download="{escape(name)}" href="{data_address(data, kind)}">{escape(words)}</a>'


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of texts; the columns of `numbers` are set to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        marks = (' class="num"' if place in numbers else "" for place in range(len(values)))
        return "".join(f"<{tag}{mark}>{escape(value)}</{tag}>" for mark, value in zip(marks, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="quiet"><p>{escape(caption)}</p></div>'
        f'<div class="scroll" tabindex="0"><table class="table" aria-label="{escape(caption)}">'
        f"<thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(named: Sequence[tuple[str, str]]) -> str:
    """Names with their values, in a row that wraps."""
    each = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in named)
    return f'<dl class="facts">{"".join(each)}</dl>'


@cache
def _renderer() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    made.add_render_rule("link_open", _link_open)
    return made


def _link_open(renderer: Any, tokens: Any, place: int, options: Any, env: Any) -> str:
    tokens[place].attrSet("rel", "noopener noreferrer nofollow")
    tokens[place].attrSet("target", "_blank")
    return str(renderer.renderToken(tokens, place, options, env))
