"""The browser of tests notices what a page must not do."""

import pytest

from browser import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


def test_a_page_that_behaves_is_quiet(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<h1>here</h1><script>console.log('drawn')</script><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    )
    with browser.open(page) as visit:
        assert visit.page.inner_text("h1") == "here"
        assert visit.messages == ["log: drawn"]
        visit.assert_quiet()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("throw new Error('broken')", "broken"),
        ("console.error('worse')", "worse"),
        ("fetch('http://localhost:9/x').catch(() => {})", "http://localhost:9/x"),
    ],
)
def test_what_a_page_must_not_do_is_noticed(browser, tmp_path, script, said):
    page = tmp_path / "page.html"
    page.write_text(f"<h1>here</h1><script>{script}</script>")
    with browser.open(page) as visit:
        visit.page.wait_for_timeout(200)
        with pytest.raises(AssertionError, match=said):
            visit.assert_quiet()


def test_a_browser_that_is_named_and_missing_fails(monkeypatch):
    monkeypatch.setenv("PYVAE_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(pytest.fail.Exception, match="PYVAE_CHROMIUM=/nowhere/chromium"), chromium():
        pass
