import pytest

from tools.lint.links import broken_links

GUIDE = """# A guide

## Where `things` go, and [why](other.md)

## Twice

## Twice

```sh
# No heading
[no link](nowhere)
```
"""


@pytest.fixture
def check(tmp_path):
    """Return what is wrong with a text in docs/README.md, beside a guide, of a small repository."""

    def check(text: str) -> list[str]:
        files = {"docs/README.md": text, "docs/guide.md": GUIDE, "docs/other.md": "", "src/main.py": ""}
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
        (tmp_path / "ignored.txt").touch()
        return [*broken_links(tmp_path, [*files])]

    return check


@pytest.mark.parametrize(
    "link",
    [
        *("guide.md", "../src/main.py", "../src", "../src/", "..", "."),
        *("guide.md#twice", "guide.md#twice-1", "guide.md#where-things-go-and-why", "../src/main.py#L1"),
        *("#a-title", "https://example.com/nowhere#none", "mailto:ada@example.com"),
    ],
)
def test_link_that_leads_somewhere(check, link):
    """Files, folders, headings as GitHub names them, and what is elsewhere are not complained of."""
    assert check(f"# A title\n\nSee [`it`]({link}).\n") == []


@pytest.mark.parametrize(
    "link", ["gide.md", "../guide.md", "../ignored.txt", "../../outside", "/docs/guide.md"]
)
def test_link_to_no_file(check, link):
    """What is not a file of the repository is named with the line; a file that git ignores is none."""
    assert check(f"# A title\n\n[it]({link})\n") == [
        f"docs/README.md:3: {link}: there is no such file in the repository"
    ]


@pytest.mark.parametrize("anchor", ["thrice", "twice-2", "Twice", "no-heading"])
def test_link_to_no_heading(check, anchor):
    """An anchor that the document does not have is named, in its own document too."""
    assert check(f"[it](guide.md#{anchor}), [here](#none)\n") == [
        f"docs/README.md:1: guide.md#{anchor}: docs/guide.md has no such heading",
        "docs/README.md:1: #none: docs/README.md has no such heading",
    ]


def test_code_has_no_links(check):
    """What stands in code is for the reader to see, and lines after it keep their numbers."""
    text = "`[a](nowhere)`\n\n```\n[b](nowhere)\n```\n\n[c](nowhere)\n"
    assert check(text) == ["docs/README.md:7: nowhere: there is no such file in the repository"]
