"""The page's style sheet: one column of figures on a phone, more where there is room, plain black on white on
paper."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1c1e22; --soft: #5c616b; --rule: #e3e0d8; --grid: #ebe9e3;
  --original: #868b95; --unlearned: #c2410c; --retrained: #1d5fa8; --other: #0f766e;
  --forget: #b45309; --retain: #2f7d5b; --test: #6d4aa3;
  --pass: #1f7a4d; --partial: #9a6700; --fail: #b42318; --none: #5c616b;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, "Liberation Serif",
  serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
  sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --card: #1c1f24; --ink: #e9e7e2; --soft: #a3a7b0; --rule: #343840; --grid: #2a2e35;
    --original: #9aa0ab; --unlearned: #f28b52; --retrained: #6fb0f5; --other: #4cc3b5;
    --forget: #eba24a; --retain: #63c294; --test: #b196e8;
    --pass: #5ccb92; --partial: #e3b341; --fail: #ff8478; --none: #a3a7b0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1120px; margin: 0 auto; padding: 48px 32px 64px; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.15; text-wrap: balance; letter-spacing:
  -0.01em; }
h1 { font-size: clamp(30px, 5vw, 46px); margin: 6px 0 12px; }
h2 { font-size: 25px; margin: 0 0 6px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 68ch; text-wrap: pretty; }
.eyebrow { font-size: 13px; letter-spacing: 0.08em; text-transform: uppercase; color: var(--soft); margin: 0;
  }
.lead { font-size: 18px; color: var(--soft); margin-bottom: 0; }
section { margin-top: 52px; }
section > p { color: var(--soft); }
.verdict { display: grid; grid-template-columns: auto 1fr; gap: 8px 28px; align-items: baseline; margin-top:
  28px; padding: 22px 24px;
  background: var(--card); border: 1px solid var(--rule); border-left: 6px solid var(--tone); border-radius:
  8px; }
.stamp { font-family: var(--serif); font-size: 30px; line-height: 1.2; font-weight: 700; color: var(--tone);
  white-space: nowrap; }
.verdict ul { margin: 0; padding: 0; list-style: none; }
.verdict li { display: flex; gap: 14px; padding: 3px 0; }
.verdict li b { flex: 0 0 62px; font-size: 12.5px; line-height: 25px; letter-spacing: 0.04em;
  color: var(--tone); }
.PASS { --tone: var(--pass); } .PARTIAL { --tone: var(--partial); } .FAIL { --tone: var(--fail); } .NONE {
  --tone: var(--none); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin-top:
  14px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 16px 18px 14px; }
.tile .name { font-size: 13.5px; color: var(--soft); line-height: 1.35; min-height: 2.7em; }
.tile .value { font-family: var(--serif); font-size: 33px; line-height: 1.25; font-variant-numeric:
  tabular-nums lining-nums; }
.tile .beside { font-size: 13.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; background: var(--card); border: 1px solid
  var(--rule);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums
  lining-nums; }
caption { text-align: left; padding: 12px 18px 0; font-size: 13.5px; color: var(--soft); }
th, td { padding: 6px 18px; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead th { font-weight: 600; padding-top: 14px; padding-bottom: 10px; border-bottom: 1px solid var(--ink); }
tbody th.group { font-weight: 600; padding-top: 16px; color: var(--ink); }
tbody tr + tr:not(.head) > * { border-top: 1px solid var(--grid); }
tbody th { color: var(--soft); }
tbody th.group { position: static; } .group span { position: sticky; left: 18px; }
tbody tr.head + tr > * { border-top: 0; }
tfoot th, tfoot td { border-top: 1px solid var(--ink); font-weight: 600; padding-top: 10px; padding-bottom:
  12px; }
td.tone { color: var(--tone); }
.noref { color: var(--soft); font-style: italic; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 14px;
  margin-top: 14px; }
figure { margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 16px 16px 12px; }
figure .scroll { border: 0; border-radius: 0; }
figcaption { font-size: 14px; font-weight: 600; margin: 0 0 8px; }
figcaption small { display: block; font-weight: 400; font-size: 13px; color: var(--soft); }
svg { display: block; width: 100%; height: auto; margin: 0 auto; overflow: visible; }
svg.fixed { margin: 0; }
svg text { font-family: var(--sans); fill: var(--soft); }
.tick { font-size: 11.5px; font-variant-numeric: tabular-nums; } .label { font-size: 12px; }
svg .marked { fill: var(--forget); font-weight: 700; } .code { font-family: var(--mono); font-size: 10.5px; }
.grid line, line.grid { stroke: var(--grid); stroke-width: 1; } line.axis { stroke: var(--soft); stroke-width:
  1; }
svg .chance { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; fill: none; }
.curve { fill: none; stroke: var(--c); stroke-width: 2.2; stroke-linejoin: round; }
.curve.original { stroke-dasharray: 7 4; } .curve.retrained { stroke-width: 1.8; }
.area { stroke: var(--c); stroke-width: 1.6; fill: var(--c); fill-opacity: 0.13; }
.area.test { fill-opacity: 0.04; stroke-dasharray: 4 2.5; }
.bar { fill: var(--c); } .dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.original { --c: var(--original); } .unlearned { --c: var(--unlearned); } .retrained { --c: var(--retrained);
  }
.other { --c: var(--other); }
.forget { --c: var(--forget); } .retain { --c: var(--retain); } .test { --c: var(--test); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; padding: 0; list-style: none;
  font-size: 14px; }
.legend li::before, th .key::before { content: ""; display: inline-block; width: 11px; height: 11px;
  border-radius: 3px;
  margin-right: 7px; background: var(--c); }
.noise { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); gap: 10px; }
.noise img { width: 100%; aspect-ratio: 1; display: block; border-radius: 4px; image-rendering: pixelated;
  background: var(--grid); }
dl { display: grid; grid-template-columns: minmax(130px, 210px) 1fr; gap: 6px 24px; margin: 14px 0 0;
  font-size: 14.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; max-width: 74ch; }
.notes { padding-left: 20px; margin: 14px 0 0; font-size: 14.5px; color: var(--soft); max-width: 78ch; }
.notes li { margin-bottom: 6px; }
footer { margin-top: 52px; padding-top: 14px; border-top: 1px solid var(--rule); font-size: 13px; color:
  var(--soft); }
@media (max-width: 560px) {
  main { padding: 26px 16px 40px; }
  section { margin-top: 40px; }
  .verdict { grid-template-columns: 1fr; padding: 18px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; } .tile { padding: 12px 13px; }  .tile .value {
  font-size: 25px; }
  th, td { padding: 6px 8px; } table { font-size: 13.5px; }
  th:first-child { padding-left: 12px; } .group span { left: 12px; } .key { display: none; }
  tbody th:not(.group), tfoot th { white-space: normal; min-width: 104px; max-width: 124px; line-height: 1.3;
  }
  figure { padding: 13px 10px 10px; } figcaption { padding: 0 4px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --grid:
  #ddd;
    --original: #777; --unlearned: #c2410c; --retrained: #1d5fa8; --other: #0f766e;
    --forget: #b45309; --retain: #2f7d5b; --test: #6d4aa3;
    --pass: #1f7a4d; --partial: #9a6700; --fail: #b42318; --none: #444; }
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section { margin-top: 26px; }
  figure, .tile, .verdict, tr, dl > * { break-inside: avoid; } h2, h3, figcaption { break-after: avoid; }
  .scroll { overflow: visible; } th, td { padding: 3px 10px; } table { font-size: 9.5pt; }
  .grid { grid-template-columns: repeat(2, 1fr); gap: 8px; } .grid.n1 { grid-template-columns: 1fr; }
  .grid.n3 { grid-template-columns: repeat(3, 1fr); } .tiles { grid-template-columns: repeat(4, 1fr); }
  figure, .tile { padding: 9px 10px; } .tile .value { font-size: 19pt; } .noise { gap: 5px; }
  .noise { grid-template-columns: repeat(12, 1fr); }
  svg.fixed { width: 100% !important; } tfoot { display: table-row-group; } section > p, .legend { break-after: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
