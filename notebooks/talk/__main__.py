"""One talk of fifteen minutes from the runs of the notebooks, for the browser and for PowerPoint.

.venv/bin/python notebooks/talk --group "Ana, Bruno" --course "Deep learning" --date 2026-11-28 --language pt
"""

import argparse
import sys
from datetime import date
from pathlib import Path

import xray_utils as xu

sys.path.append(str(Path(__file__).resolve().parents[1] / "templates"))
from index_writer import write_index

from export import write_html, write_pdf, write_pptx
from slides import Talk
from words import Words, languages


def main():
    parser = argparse.ArgumentParser(prog="notebooks/talk", description=__doc__.split("\n")[0])
    option = parser.add_argument
    option("--group", required=True, help="the names of those who present")
    option("--course", required=True, help="the name of the course")
    option("--date", type=date.fromisoformat, default=date.today(), help="as 2026-11-28; default: today")
    option("--language", choices=languages(), default="en", help="a column of strings.csv")
    option("--protocol", choices=("grouped", "slides"), default="grouped", help="the split of the runs")
    option("--runs", choices=("own", "sample"), help="default: own runs, if there are any")
    arguments = parser.parse_args()
    words = Words(arguments.language)
    try:
        talk = Talk(words, arguments.protocol, arguments.runs)
        slides = talk.make(arguments.group, arguments.course, arguments.date)
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"talk: {error.args[0] if isinstance(error, KeyError) else error}")
    name = f"talk.{words.language}"
    html, pptx, pdf = (xu.outputs_dir("slides", f"{name}.{ending}") for ending in ("slides.html", "pptx", "pdf"))
    write_html(slides, words, talk.footer, html)
    write_pptx(slides, words, talk.footer, pptx)
    seconds = sum(slide.seconds for slide in slides)
    print(f"{len(slides)} slides, {seconds // 60}:{seconds % 60:02d} minutes; runs: {talk.kind}, {talk.protocol}")
    print(html, pptx, sep="\n")
    try:
        write_pdf(slides, words, talk.footer, pdf)
        print(pdf)
    except OSError as error:
        print(f"No {pdf.name}: {error}")
    print(write_index(html.parent))


if __name__ == "__main__":
    main()
