"""A plot that grows while a script runs: in a window where there is a display, else in a picture that is written anew."""
import os
import pathlib


class LivePlot:
    """Curves by their names. `file`: the picture; also written where a window is shown, so that something stays."""

    def __init__(self, file, title, x_label, y_label, log=False):
        import matplotlib

        self.window = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        if not self.window:
            matplotlib.use("Agg")
        import matplotlib.pyplot as pyplot

        self.pyplot = pyplot
        self.file = pathlib.Path(file)
        self.figure, self.axes = pyplot.subplots(figsize=(8, 5))
        self.axes.set(title=title, xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
        self.lines = {}
        if self.window:
            pyplot.show(block=False)

    def add(self, name, x, y, **style):
        """One more point of the curve `name`; style: of its line, the first time."""
        if name not in self.lines:
            self.lines[name] = self.axes.plot([], [], label=name, **style)[0]
            if len(self.lines) <= 8:
                self.axes.legend(loc="best")
        line = self.lines[name]
        line.set_data([*line.get_xdata(), x], [*line.get_ydata(), y])

    def show(self):
        self.axes.relim()
        self.axes.autoscale_view()
        # Whoever looks at the picture sees the old one or the new one, nothing between.
        part = self.file.with_name("." + self.file.name)
        self.figure.savefig(part, format=self.file.suffix[1:] or "png")
        part.replace(self.file)
        if self.window:
            self.figure.canvas.draw_idle()
            self.pyplot.pause(0.001)
