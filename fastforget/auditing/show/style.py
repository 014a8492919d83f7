"""The page's style sheet: one column of figures on a phone, more where there is room, plain black on white on
paper."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1c1e22; --soft: #5c616b; --rule: #e3e0d8; --grid: #ebe9e3; --shade: #1c1e2230;
  --original: #868b95; --unlearned: #c2410c; --retrained: #1d5fa8;
  --other1: #0f766e; --other2: #8b3fa0; --other3: #8a6d00; --other4: #b0306a;
  --control1: #7a5c3e; --control2: #4f6d7a; --control3: #66752c; --control4: #85506e;
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
    --paper: #15171b; --card: #1c1f24; --ink: #e9e7e2; --soft: #a3a7b0; --rule: #343840; --grid: #2a2e35; --shade: #000000a0;
    --original: #9aa0ab; --unlearned: #f28b52; --retrained: #6fb0f5;
    --other1: #4cc3b5; --other2: #cf8fe3; --other3: #d9bd45; --other4: #f07fae;
    --control1: #c2a078; --control2: #8fb0bf; --control3: #aebd6c; --control4: #c797b2;
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
.verdict li.model { font-weight: 600; } .verdict li.model:not(:first-child) { margin-top: 12px; }
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
/* A shade at the right edge, covered by paper once the end is reached, says that there is more. */
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; border: 1px solid var(--rule); border-radius: 8px;
  background: linear-gradient(to left, var(--card) 30%, transparent) right / 44px 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 16px 100% no-repeat scroll, var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums
  lining-nums; }
caption { text-align: left; padding: 12px 18px 0; font-size: 13.5px; color: var(--soft); }
th, td { padding: 6px 18px; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td:first-child { position: sticky; left: 0; background: var(--card); }
thead > tr > * { font-weight: 600; padding-top: 14px; padding-bottom: 10px; border-bottom: 1px solid var(--ink); }
tbody th.group { font-weight: 600; padding-top: 16px; color: var(--ink); }
tbody tr + tr:not(.head) > * { border-top: 1px solid var(--grid); }
tbody th { color: var(--soft); }
tbody th.group { position: static; background: none; } .group span { position: sticky; left: 18px; }
tbody tr.head + tr > * { border-top: 0; }
tfoot th, tfoot td { border-top: 1px solid var(--ink); font-weight: 600; padding-top: 10px; padding-bottom:
  12px; }
td small { display: inline-block; min-width: 6.6em; margin-left: 8px; text-align: left; font-size: 12px; color: var(--soft); }
table.many td small { display: block; min-width: 0; margin: -3px 0 0; text-align: right; }
table.many td small:empty { display: none; }
table.many { font-size: 14px; } table.many th, table.many td { padding-left: 8px; padding-right: 10px; }
table.many th:first-child { padding-left: 18px; white-space: normal; min-width: 150px; }
table.many th.group { white-space: nowrap; } .many .key { display: block; width: 24px; margin: 0 0 4px auto; }
thead th { white-space: normal; overflow-wrap: break-word; max-width: 170px; vertical-align: bottom; }
table.say th, table.say td { text-align: left; } td.say { white-space: normal; min-width: 130px; }
table.narrow { font-size: 14px; } table.narrow th, table.narrow td { padding: 4px 10px; }
.thumb img { width: 44px; height: 44px; object-fit: contain; display: block; margin-left: auto; image-rendering: pixelated;
  border-radius: 3px; background: var(--grid); }
details { margin-top: 14px; } summary { cursor: pointer; font-size: 14.5px; color: var(--soft); padding: 6px 0; }
:focus-visible { outline: 2px solid var(--retrained); outline-offset: 2px; }
td.tone { color: var(--tone); }
.noref { color: var(--soft); font-style: italic; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 14px;
  margin-top: 14px; }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 16px 16px 12px; }
figure .scroll { border: 0; border-radius: 0; }
h1, h2, p, li, figcaption { overflow-wrap: anywhere; }
.verdict > ul, .legend li, .verdict li span { min-width: 0; }
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
.other1 { --c: var(--other1); } .other2 { --c: var(--other2); } .other3 { --c: var(--other3); } .other4 { --c: var(--other4); }
.c1 { --c: var(--control1); } .c2 { --c: var(--control2); } .c3 { --c: var(--control3); } .c4 { --c: var(--control4); }
.curve.other2 { stroke-dasharray: 10 2.5; } .curve.other3 { stroke-dasharray: 5 2; } .curve.other4 { stroke-dasharray: 12 2 2 2; }
.curve.control { stroke-width: 1.5; } .curve.c2 { stroke-dasharray: 6 3; } .curve.c3 { stroke-dasharray: 2 2; }
.curve.c4 { stroke-dasharray: 8 2 2 2; }
figure.control, .legend .control, svg .control { display: none; }
main:has(#with-controls:checked) :is(figure, svg *, .legend li).control { display: revert; }
.switch { margin: 12px 0 0; font-size: 14.5px; } .switch input { width: 17px; height: 17px; vertical-align: -3px; margin: 0 6px 0 0; }
.warning { margin: 12px 0 0; padding: 10px 14px; border-left: 4px solid var(--tone); background: var(--card); color: var(--ink); }
.warning b { color: var(--tone); }
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
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; max-width: 74ch; }
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
  tbody th:not(.group), tfoot th { white-space: normal; min-width: 104px; max-width: 124px; line-height: 1.3; }
  td small, table.many td small { display: block; min-width: 0; margin: -3px 0 0; text-align: right; font-size: 11px; }
  td small:empty { display: none; } table.say th, table.say td { padding: 6px 5px; }
  table.many th, table.many td { padding: 6px 5px; } table.many th:first-child { padding-left: 10px; min-width: 92px; }
  .figures thead th { font-size: 12px; } .figures tbody th:not(.group), .figures tfoot th { min-width: 92px; max-width: 112px; }
  table.narrow th, table.narrow td { padding: 4px 4px; } table.narrow { font-size: 12.5px; } .thumb img { width: 38px; height: 38px; }
  table.say th:first-child, table.narrow th:first-child { min-width: 0; }
  svg.wide .tick { font-size: 13.5px; } svg.wide .label { font-size: 14px; } svg.wide .code { font-size: 13px; }
  figure { padding: 13px 10px 10px; } figcaption { padding: 0 4px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --grid:
  #ddd;
    --original: #777; --unlearned: #c2410c; --retrained: #1d5fa8;
    --other1: #0f766e; --other2: #8b3fa0; --other3: #8a6d00; --other4: #b0306a;
  --control1: #7a5c3e; --control2: #4f6d7a; --control3: #66752c; --control4: #85506e;
    --forget: #b45309; --retain: #2f7d5b; --test: #6d4aa3;
    --pass: #1f7a4d; --partial: #9a6700; --fail: #b42318; --none: #444; }
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section { margin-top: 26px; }
  figure, .tile, .verdict li, tbody, tr, dl > *, section > p { break-inside: avoid; }
  h2, h3, figcaption, .verdict li.model { break-after: avoid; }
  .scroll { overflow: visible; } th:first-child, td:first-child { position: static; background: none; }
  th, td { padding: 3px 10px; } table { font-size: 9.5pt; }
  .grid { grid-template-columns: repeat(2, 1fr); gap: 8px; } .grid.n1 { grid-template-columns: 1fr; }
  .grid.n3 { grid-template-columns: repeat(3, 1fr); } .tiles { grid-template-columns: repeat(4, 1fr); }
  .verdict { font-size: 9.5pt; padding: 12px 16px; } .verdict li b { font-size: 8.5pt; line-height: 1.7; }
  figure, .tile { padding: 9px 10px; } .tile .value { font-size: 19pt; } .noise { gap: 5px; }
  .noise { grid-template-columns: repeat(12, 1fr); }
  table.many { font-size: 7.5pt; } table.many th, table.many td { padding: 2px 4px; }
  table.many th:first-child { min-width: 0; padding-left: 6px; } table.many td small { font-size: 6.5pt; margin: -1px 0 0; }
  td small { font-size: 8pt; } table.narrow { font-size: 7.5pt; }
  table.narrow th, table.narrow td { padding: 2px 4px; } .thumb img { width: 26px; height: 26px; }
  .scroll { background: none; } .grid.wide:not(.n1) { grid-template-columns: repeat(2, 1fr); } .switch, summary { display: none; }
  details::details-content { content-visibility: visible; display: contents; }
  svg.fixed { width: 100% !important; } tfoot { display: table-row-group; } section > p, .legend { break-after: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
