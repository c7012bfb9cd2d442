"""A headless Chromium that opens a page, acts as its reader, and says what the reader finds."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

_DRIVER = """
<script>
addEventListener("load", async () => {
  const $ = (selector) => document.querySelector(selector), $$ = (selector) => [...document.querySelectorAll(selector)];
  const wait = () => new Promise((done) => setTimeout(done, 50));
  const press = async (key) => {
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    await wait();
  };
  let found;
  try { found = await (async () => { %s })(); } catch (error) { found = { error: String(error.stack) }; }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


def read(path: Path, script: str, hash: str = "", *arguments: str) -> Any:
    """Open the page at ``hash``, run the body of an asynchronous function in it, and return what it returns.

    The body has ``$``, ``$$``, ``wait`` and ``press`` (a key, for the element that has the focus). The page's policy, which
    allows no other script than its own, is taken off for it.
    """
    text = path.read_text(encoding="utf-8")
    text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    driven = path.with_name("driven.html")
    driven.write_text(text.replace("</body>", _DRIVER.replace("%s", script) + "</body>"), encoding="utf-8")
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', dom(driven, hash, *arguments), re.DOTALL)
    result = json.loads(html.unescape(found))
    assert not (isinstance(result, dict) and "error" in result), result
    return result


def dom(path: Path, hash: str = "", *arguments: str) -> str:
    """The document after its scripts have run, without network."""
    assert CHROMIUM is not None
    profile = path.parent / "profile"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *options, *arguments, "--dump-dom", path.as_uri() + hash]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
