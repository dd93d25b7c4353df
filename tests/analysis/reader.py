"""Operate a report as a reader would, in a real, headless browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRACES = """
const plot = document.querySelectorAll(".plot")[arguments[0]];
return plot.data.map((trace) => ({
  kind: trace.meta.kind, series: trace.meta.series, x: trace.x, y: trace.y, customdata: trace.customdata,
}));
"""
PIXEL = """
const [plot, kind, series, place] = [document.querySelectorAll(".plot")[arguments[0]], ...[...arguments].slice(1)];
const trace = plot.data.filter((trace) => trace.meta.kind === kind && trace.meta.series === series)[0];
const { xaxis, yaxis, width, height } = plot._fullLayout;
return [
  xaxis._offset + xaxis.d2p(trace.x[place]) - width / 2,
  yaxis._offset + yaxis.d2p(trace.y[place]) - height / 2,
  trace.customdata[place],
];
"""


class Reader:
    """Operate an opened report."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        self.path = path

    def open(self, fragment: str = "", width: int = 1400, height: int = 900) -> None:
        self.driver.get("about:blank")  # or only the fragment would change, and nothing be loaded
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(f"{self.path.as_uri()}{fragment}")
        self.drawn()

    def wait(self, condition: str, *arguments: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(
            lambda driver: driver.execute_script(f"return {condition}", *arguments)
        )

    def drawn(self) -> None:
        self.wait('document.querySelector("#panels .plot")?.data !== undefined')

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.find_all(selector)]

    def box(self, label: str) -> Any:
        (box,) = [box for box in self.find_all(".choice") if box.text == label]
        return box

    def set(self, control: str, value: Any) -> None:
        """Set a control as its user would, and wait until all visible panels are redrawn."""
        script = """
            arguments[0].value = arguments[1];
            for (const name of ["input", "change"]) arguments[0].dispatchEvent(new Event(name, { bubbles: true }));
        """
        self.driver.execute_script(script, self.find(control), value)
        self.redrawn()

    def click(self, element: Any) -> None:
        element.click()
        self.redrawn()

    def redrawn(self) -> None:
        self.wait(
            "[...panels.values()].every((panel) => !panel.stale || !panel.inView || !panel.article.isConnected)"
        )

    def traces(self, panel: int, kind: str, series: int) -> list[dict[str, Any]]:
        found = self.driver.execute_script(TRACES, panel)
        return [trace for trace in found if (trace["kind"], trace["series"]) == (kind, series)]

    def hover(self, panel: int, kind: str, series: int, place: int) -> tuple[str, list[Any]]:
        """Return the tooltip at a point, and the data behind that point."""
        from selenium.webdriver import ActionChains

        plot = self.find_all(".plot")[panel]
        self.driver.execute_script('arguments[0].scrollIntoView({ block: "center" })', plot)
        x, y, data = self.driver.execute_script(PIXEL, panel, kind, series, place)
        actions = ActionChains(self.driver)
        actions.move_to_element_with_offset(plot, round(x) - 3, round(y) - 3)
        actions.move_to_element_with_offset(plot, round(x), round(y)).perform()
        self.wait('arguments[0].querySelector(".hoverlayer .hovertext") !== null', plot)
        return plot.find_element("css selector", ".hovertext").get_attribute("textContent"), data

    def console(self) -> list[Any]:
        return self.driver.get_log("browser")
