"""Texts that would break out of a page if they were not escaped, and a check of the page."""

from html.parser import HTMLParser


# The number says which of them a page shows
_ATTACK = "</title></style><script>alert(1)</script><img src=x onerror='a()'>\"><b {{ 7 * 7 }} {% raw %}"
HOSTILE = [f"{number}{_ATTACK}" for number in range(1000, 1010)]
_VOID = ("meta", "img", "wbr")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Collects what a page is made of, and checks that its elements are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_harmless(text: str, shown: int) -> Page:
    """The page has no script and loads nothing, and shows the first `shown` texts of `HOSTILE` as they are."""
    page = Page(text)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert ("content", _POLICY) in page.attributes
    assert [each for each in HOSTILE[:shown] if each not in page.text] == []
    return page
