"""The report: one self-contained page, CSV and JSON beside it, a summary in the terminal.

tables.py            every table of the page and the terminal, as plain cells
plots.py             survival curves as SVG
page.py              the page: dialogues as one JSON block, read by page.js with textContent only
texts.py images.py   what bounds the page's size: texts cut, pictures small and once by hash; --redact
bench_report.py      a report of run folders;  records_report.py  of training records
terminal.py          the tables in the terminal
"""
