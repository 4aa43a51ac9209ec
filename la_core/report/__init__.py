"""What a run looks like, drawn and told.

page.py       report                a run folder as one HTML page that needs no network, and its figures as files
sections.py                         what the page says, section by section
contents.py                         what a run folder holds
markup.py     style.py              the parts of a page, and how they look
figures.py    curves, neighbours    pictures, by matplotlib
record.py     Recorder              a callback that leaves what the page needs beside the metrics
"""

from la_core.report.figures import BLUE, GRAY, GREEN, RED, curves, neighbours
from la_core.report.page import report
from la_core.report.record import Recorder

__all__ = ["BLUE", "GRAY", "GREEN", "RED", "Recorder", "curves", "neighbours", "report"]
