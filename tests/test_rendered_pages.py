"""The check of built documentation pages."""

import logging
from types import SimpleNamespace

import pytest
from docs.hooks.rendered_pages import complaints, on_post_build


@pytest.fixture
def site(tmp_path):
    def write(body):
        (tmp_path / "guide").mkdir(exist_ok=True)
        (tmp_path / "guide" / "index.html").write_text('<h1 id="top">Guide</h1>')
        (tmp_path / "index.html").write_text(f"<body>{body}</body>")
        return tmp_path

    return write


def test_rendered_text_and_working_links_pass(site):
    body = """<p id="here">2 * 3 [1] <code>**kwargs, `x`</code> <pre>| a |</pre></p> <a href="guide/">a</a>
    <a href="guide/#top">b</a> <a href="#here">c</a> <a href="https://example.org/none#x">d</a>"""
    assert complaints(site(body)) == []


@pytest.mark.parametrize(
    "text", ["**bold**", "some `code`", "[text](page.md)", "[text][name]", "| a | b |", "::: deformdetr.nn"]
)
def test_markdown_left_in_the_text_is_found(site, text):
    assert complaints(site(f"<p>{text}</p>")) == [f"index.html: stray Markdown in {text!r}"]


@pytest.mark.parametrize("link", ["absent/", "guide.md", "guide/#absent", "#absent", "../guide/"])
def test_dead_links_are_found(site, link):
    assert complaints(site(f'<a href="{link}">x</a>')) == [f"index.html: dead link {link}"]


def test_missing_images_are_found(site):
    assert complaints(site('<img src="absent.png">')) == ["index.html: dead link absent.png"]


def test_complaints_are_warnings_of_the_build(site, caplog):
    with caplog.at_level(logging.WARNING):
        on_post_build(SimpleNamespace(site_dir=str(site("**bold**"))))
    assert caplog.messages == ["index.html: stray Markdown in '**bold**'"]
