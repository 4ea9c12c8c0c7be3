"""nbconvert's settings for pages and decks: `--config notebooks/templates/config.py`.

deck/ makes slides that need no network: reveal.js 6.0.2 lies unchanged in deck/static, from the
npm package of that name (MIT licence, beside it). page/ is nbconvert's own page with
alternative texts of the pictures, folded solutions and quiet notes. In both, a link to another
notebook leads to its page or deck. index_writer.py says how long each took, and links them all.
"""

import sys
from pathlib import Path

import zmq
from jupyter_client import KernelManager

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
c = get_config()  # noqa: F821  (nbconvert gives it)
c.TemplateExporter.extra_template_basedirs = [str(HERE)]
c.TemplateExporter.extra_template_paths = [str(HERE)]
c.HTMLExporter.template_name = "page"
c.SlidesExporter.template_name = "deck"
c.SlidesExporter.exclude_anchor_links = True
c.CoalesceStreamsPreprocessor.enabled = True
c.NbConvertApp.writer_class = "index_writer.IndexWriter"
c.NbConvertApp.log_level = "WARN"  # the writer says what is done
if hasattr(KernelManager, "transport_encryption") and zmq.has("curve"):
    c.KernelManager.transport_encryption = (
        "auto"  # otherwise each kernel warns that its connection is open
    )
