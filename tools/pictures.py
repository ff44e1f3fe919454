"""Two pictures of the report, for the README, taken in a browser.

reads   out/report.html
writes  docs/report-next.png, docs/report-tokens.png

    python -m tools.pictures          # needs selenium, chromium and chromedriver
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from common import fail, parse_config


@dataclass
class Config:
    report: str = "out/report.html"
    out: str = "docs"                # the folder to write to
    debug: bool = False              # show tracebacks


# section: what to do first
PICTURES = dict(next='press("fact")', tokens="""press("fact"); press("advantage");
    const slider = document.querySelector("#tokens input");
    slider.value = 1; slider.dispatchEvent(new Event("input"))""")
PRESS = """const press = name => [...document.querySelectorAll("#%s .bar button")]
    .find(button => button.innerText === name)?.click();"""


def open_browser(width=900, height=760):
    """Chromium without a window."""
    try:
        from selenium import webdriver
    except ImportError:
        fail("this needs selenium: pip install selenium")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        fail("this needs a browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})   # for the tests
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run",
                 "disable-background-networking", "remote-debugging-pipe"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_window_size(width, height)
    return browser


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    report = Path(config.report).resolve()
    if not report.is_file() or report.suffix != ".html":
        fail(f"{config.report or repr('')} is missing: `python -m tools.report` makes it")
    browser = open_browser()
    browser.get(report.as_uri())
    for name, script in PICTURES.items():
        browser.execute_script(PRESS % name + script + f"""
            document.querySelector("nav")?.remove();
            document.documentElement.style.scrollPadding = 0;
            document.getElementById("{name}").scrollIntoView()""")
        path = Path(config.out) / f"report-{name}.png"
        browser.save_screenshot(str(path))
        print(f"saved {path}")
    browser.quit()
