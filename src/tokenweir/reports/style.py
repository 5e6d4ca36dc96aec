"""The style sheet of the HTML report: light and dark by the reader's own setting, and on paper without colour behind the text.

The rule it protects: colours of charts differ in lightness as well as in hue, so that they can be told apart without seeing colour. Change together with
`charts.py`, which names the classes.
"""

from __future__ import annotations

STYLE = """
:root{--bg:#f7f8f8;--panel:#fff;--ink:#16222b;--soft:#5b6a75;--rule:#dde3e6;
--c0:#0b5f82;--c1:#e08a1e;--c2:#3f9c6b;--c3:#b0487a;--c4:#7fb7d4;--c5:#8d8a86}
@media (prefers-color-scheme:dark){:root{--bg:#0f161b;--panel:#172128;--ink:#e6edf1;--soft:#9bacb7;--rule:#2b3942;
--c0:#4bb1dc;--c1:#f0a640;--c2:#5fc491;--c3:#df86b1;--c4:#a9d3e8;--c5:#a5a29d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 48px}
header p,footer,section p,.card p{color:var(--soft)}
h1{font-size:28px;line-height:1.2;margin:0}header p{margin:4px 0 20px}
h2{font-size:17px;margin:0 0 10px}section p{margin:0 0 10px;font-size:14px}
section{background:var(--panel);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin:16px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(175px,1fr));gap:12px;margin:0}
.card{background:var(--panel);border:1px solid var(--rule);border-radius:10px;padding:14px 16px}
.card dt{font-size:13px;color:var(--soft)}.card dd{margin:2px 0;font-size:21px;font-weight:650;white-space:nowrap;font-variant-numeric:tabular-nums}
.card p{margin:0;font-size:12.5px}
.chart{width:100%;min-width:640px;height:auto;display:block}.tick{fill:var(--soft);font-size:12px}.grid{stroke:var(--rule)}
.line{fill:none;stroke:var(--c0);stroke-width:2}.dot{fill:var(--c0)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}
g:hover rect{opacity:.8}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:8px 0 0;padding:0;font-size:13px}
.legend svg{width:10px;height:10px;margin-right:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{padding:6px 10px;border-bottom:1px solid var(--rule);text-align:left;font-weight:400}
thead th{color:var(--soft);font-size:12.5px;white-space:nowrap}
tbody th{overflow-wrap:anywhere;min-width:150px}
tfoot th,tfoot td{font-weight:650;border-bottom:0}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.b{width:110px;min-width:70px}.bar{width:100%;height:8px;display:block}
abbr{text-decoration:none;color:var(--soft);margin-right:2px}
summary{cursor:pointer}summary h2{display:inline}
details[open] summary{margin-bottom:10px}
ul{margin:0;padding-left:20px}
footer{font-size:12.5px;margin-top:20px}
@media print{body{background:#fff}section,.card{break-inside:avoid}}
"""
