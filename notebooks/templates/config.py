"""nbconvert's settings for pages and decks: `--config notebooks/templates/config.py`.

deck/ makes slides that need no network: reveal.js 6.0.2 lies unchanged in deck/static, from the
npm package of that name (MIT licence, beside it). page/ is nbconvert's own page with
alternative texts of the pictures, folded solutions and quiet notes. In both, a link to another
notebook leads to its page or deck.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
c = get_config()  # noqa: F821  (nbconvert gives it)
c.TemplateExporter.extra_template_basedirs = [str(HERE)]
c.TemplateExporter.extra_template_paths = [str(HERE)]
c.HTMLExporter.template_name = "page"
c.SlidesExporter.template_name = "deck"
c.SlidesExporter.exclude_anchor_links = True
c.CoalesceStreamsPreprocessor.enabled = True
