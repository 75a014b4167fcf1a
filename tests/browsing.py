"What the tests in a real browser share: Chromium where there is one, and a server for as long as a test needs it."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium): nothing is tested in a real browser")
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}      # JupyterLab would ask about news, and the net for them


@contextmanager
def chromium() -> Iterator:
    "The system's Chromium, headless; Playwright's own is neither needed nor fetched."
    from playwright.sync_api import sync_playwright    # here, so that the tests are collected, and skipped, where there is no browser
    os.environ["PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD"] = "1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def serving(module: str, *arguments: str, folder: Path, settings: Mapping[str, Mapping] | None = None) -> Iterator[str]:
    """`python -m module arguments` in `folder` until the block ends -> its address http://127.0.0.1:port, once it answers; "{port}" in an argument stands for the port.

    settings: of JupyterLab, {plugin: {name: value}}. The server sees nothing of the user's own Jupyter: settings, workspaces and history are new."""
    port, own = _free_port(), folder / ".server"
    _write_settings(own / "settings", settings or {})
    address, log = f"http://127.0.0.1:{port}", own / "log.txt"
    with open(log, "wb") as output:
        server = subprocess.Popen([sys.executable, "-m", module, *(a.format(port=port) for a in arguments)], cwd=folder, env=_environment(own), stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(address, server, log)
            yield address
        finally:
            _stop(server)


def _stop(server: subprocess.Popen) -> None:
    "End a server; one that is asked and does not end is killed."
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _write_settings(folder: Path, settings: Mapping[str, Mapping]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for plugin, values in settings.items():
        package, name = plugin.split(":")
        (folder / package).mkdir(parents=True, exist_ok=True)
        (folder / package / f"{name}.jupyterlab-settings").write_text(json.dumps(values))


def _environment(own: Path) -> dict[str, str]:
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
              "IPYTHONDIR": "ipython"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))       # the kernel imports this checkout
    return {**os.environ, **{name: str(own / place) for name, place in places.items()}, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except urllib.error.HTTPError:      # an answer, too
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(.2)
    raise RuntimeError(f"{address} does not answer; the server said:\n{log.read_text(errors='replace')[-3000:]}")
