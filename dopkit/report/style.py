"""The style sheet: one column of text, system fonts, light and dark, paper, from 360 pixels up.

Colours are named once for light and once for dark; ramps grow evenly darker (lighter in the dark), so they still read
in grey. Knows classes, not sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dopkit.report.markup import Markup


@dataclass(frozen=True)
class Theme:
    """Colours by name; both ramps from low to high, and the step from which text on them is ``far``, not ``near``."""

    names: Mapping[str, str]
    ramp: Sequence[str]
    negative: Sequence[str]
    near: str
    far: str
    turn: int


LIGHT = Theme(
    {"page": "#ffffff", "ink": "#1a2027", "quiet": "#5a6570", "rule": "#d5dbe1", "faint": "#f3f5f7",
     "link": "#0b5394", "blue": "#1f6098", "orange": "#b3560f", "grey": "#7b8691"},
    ("#eef4f9", "#cee0ef", "#adcce4", "#8db9da", "#6ca5cf", "#5290be", "#3d76a2", "#2f6491", "#1e4f7b", "#0d3b66"),
    ("#fbf1e7", "#f2dac5", "#e9c3a3", "#e0ac81", "#d5965d", "#c47f43", "#a5622e", "#975627", "#814219", "#6b2f0a"),
    near="#14191f", far="#ffffff", turn=6,
)  # fmt: skip
DARK = Theme(
    {"page": "#12171c", "ink": "#e3e8ed", "quiet": "#9aa6b2", "rule": "#323c46", "faint": "#1a2128",
     "link": "#8cc4f2", "blue": "#74b3e6", "orange": "#e79a56", "grey": "#84909c"},
    ("#1a242e", "#203445", "#26445d", "#2c5577", "#316691", "#3a719c", "#5e93bd", "#7babd2", "#98c4e6", "#b5defb"),
    ("#2a2118", "#412d1c", "#593a1f", "#724621", "#8d5322", "#99602d", "#b9804f", "#cd9a6b", "#e2b487", "#f6cfa4"),
    near="#f2f5f8", far="#0e1318", turn=6,
)  # fmt: skip

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;color-scheme:light dark}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
 font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:65rem;margin:0 auto;padding:2.5rem 1.5rem 3rem}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.01em;margin:0 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;line-height:1.3;margin:3.2rem 0 .9rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:2rem 0 .3rem}
p{margin:.4rem 0;max-width:44rem}
a{color:var(--link);text-underline-offset:.15em}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
pre{background:var(--faint);padding:.9rem 1.1rem;border-radius:4px;line-height:1.45}
.quiet{color:var(--quiet)}
p.quiet{font-size:.9rem}
.eyebrow{color:var(--quiet);font-size:.85rem;margin:0 0 .2rem}
.lede{font-size:1.12rem;max-width:46rem;overflow-wrap:anywhere}
ul{margin:.6rem 0;padding-left:1.2rem;max-width:52rem;overflow-wrap:anywhere}
li{margin:.2rem 0}
footer{margin-top:3.5rem;padding-top:.8rem;border-top:1px solid var(--rule);color:var(--quiet);font-size:.85rem}
dl{margin:1.3rem 0 0}
dt{color:var(--quiet);font-size:.82rem}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:1rem 2.4rem}
.figures dd{font-size:1.3rem;line-height:1.3;font-weight:600}
.facts{margin:.8rem 0 1.4rem;display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.7rem 1.5rem}
.facts dd{font-size:.95rem}
.scroll{overflow-x:auto;margin:.3rem 0 .4rem}
table{border-collapse:collapse;font-size:.9rem;min-width:min(100%,24rem);font-variant-numeric:tabular-nums}
th,td{padding:.36rem 1.15rem .36rem 0;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--quiet);font-size:.82rem;vertical-align:bottom;white-space:nowrap}
tbody th{font-weight:500}
td a{display:inline-block;min-width:11rem}
.num{text-align:right}
td.num{white-space:nowrap}
table.heat{min-width:0;margin-left:-2px;border-collapse:separate;border-spacing:2px}
.heat th,.heat td{border:0;padding:.32rem .55rem;white-space:nowrap}
.heat td{text-align:right;min-width:3.6rem}
.heat thead th{text-align:right}
.heat tbody th,.heat thead th:first-child{text-align:left;position:sticky;left:0;background:var(--page);
 padding-left:0}
.heat .opens>*{border-top:.6rem solid var(--page)}
.heat .strong{box-shadow:inset 0 0 0 2px var(--ink),inset 0 0 0 3px var(--page)}
.heat td{background-clip:padding-box}
.heat.many{font-size:.78rem}
.heat.many td{min-width:0;padding:.28rem .22rem}
.heat.many thead th:not(:first-child){padding:.3rem .3rem}
.heat.many thead th:not(:first-child)>span{writing-mode:vertical-rl;transform:rotate(180deg)}
.legend{display:flex;flex-wrap:wrap;align-items:center;gap:.3rem 1.1rem;font-size:.82rem;color:var(--quiet);
 max-width:none}
.legend .ramp{display:inline-flex;margin:0 -.5rem}
.legend i{width:1.1rem;height:.75rem;background:var(--c)}
.legend>span:not(.ramp){display:inline-flex;align-items:center;gap:.4rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.5rem 2.5rem;
 align-items:start}
.pair>*{min-width:0}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));gap:.9rem 1.2rem}
figure{margin:1.1rem 0 0;min-width:0}
.panels figure{margin:0}
.grids{display:flex;flex-wrap:wrap;gap:0 3.5rem;align-items:flex-start}
.grids>*{min-width:0}
.grids p:not(.legend){max-width:22rem}
figcaption{color:var(--quiet);font-size:.88rem;overflow-wrap:anywhere}
svg.chart{display:block;width:100%;height:auto;max-width:27rem;overflow:visible}
.legend svg.chart{width:26px;flex:none}
.chart text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink);
 font-variant-numeric:tabular-nums}
.chart text.quiet{fill:var(--quiet)}
.chart .grid{stroke:var(--rule)}
.chart .axis{stroke:var(--quiet)}
.chart line,.chart polyline{fill:none;stroke-width:1.6;stroke:var(--l,var(--grey));stroke-linejoin:round}
.chart .grid,.chart .axis{stroke-width:1}
.chart circle{fill:var(--l,var(--grey));stroke:none}
.chart text.label{fill:var(--l,var(--quiet))}
.chart .merged,.chart .stability_after,.chart .objective_after{--l:var(--blue);stroke-width:2.2}
.chart .stability_before,.chart .objective_before{--l:var(--blue);stroke-dasharray:2 2.5;stroke-width:1.2}
.chart .plasticity_after{--l:var(--orange);stroke-dasharray:10 2.5;stroke-width:2.2}
.chart .plasticity_before{--l:var(--orange);stroke-dasharray:6 2 1.5 2;stroke-width:1.2}
.chart .expert{stroke-dasharray:6 3}
.chart .base{stroke-dasharray:1.5 3}
.chart polyline.task{stroke-width:1.2}
.chart .worst{--l:var(--orange)}
.chart .m0{--l:var(--blue)}
.chart .m1{--l:var(--orange);stroke-dasharray:8 2.5}
.chart .m2{--l:var(--ink)}
.chart .m3{--l:var(--grey);stroke-dasharray:2 2.5}
.chart .m4{--l:var(--blue);stroke-dasharray:5 3}
.chart .m5{--l:var(--orange);stroke-dasharray:1.5 3}
.chart circle{stroke-width:0}
.chart circle.stability_before,.chart circle.plasticity_before,.chart circle.objective_before{opacity:.55}
.chart rect{fill:var(--c)}
.chart text[class^=h]{fill:var(--t)}
svg.bar{display:block;width:100%;min-width:5rem;height:.55rem}
.bar rect{fill:var(--blue)}
details summary{cursor:pointer;color:var(--quiet);font-size:.88rem}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
td[class^=h],td[class^=n]{background:var(--c);color:var(--t)}
@media (max-width:40rem){
 main{padding:1.5rem 1rem 2rem}
 h1{font-size:1.6rem}
 .figures{gap:.8rem 1.6rem}
 .figures dd{font-size:1.15rem}
}
@media print{
 @page{margin:14mm}
 body{font-size:9.5pt}
 main{max-width:none;padding:0}
 *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
 h2{margin-top:1.8rem}
 h2,h3,figcaption{break-after:avoid}
 tr,figure:not(.table),.legend,.keep,.facts>div{break-inside:avoid}
 .scroll{overflow:visible}
 .heat.many{font-size:6.5pt}
 .heat.many td{padding:.2rem .16rem}
 .pair{grid-template-columns:1fr 1fr}
 .panels{grid-template-columns:1fr 1fr 1fr}
 a{color:inherit}
}
"""


def style_sheet() -> Markup:
    """The whole style sheet; dark where the reader's screen is, never on paper."""
    dark = f"@media screen and (prefers-color-scheme:dark){{{_colours(DARK)}}}"
    return Markup(_colours(LIGHT) + _RULES + dark)


def _colours(theme: Theme) -> str:
    names = "".join(f"--{name}:{colour};" for name, colour in theme.names.items())
    steps = [
        f".{letter}{step}{{--c:{colour};--t:{theme.near if step < theme.turn else theme.far}}}"
        for letter, ramp in (("h", theme.ramp), ("n", theme.negative))
        for step, colour in enumerate(ramp)
    ]
    return f":root{{{names}}}" + "".join(steps)
