# ruff: noqa: E501
"""The style of the page: cards in as many columns as there is room for, light or dark as the reader prefers."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #fff; --ink: #1a1c1f; --soft: #55595f; --line: #d9dbde; --mark: #2b6cb0; --heat: 42 157 92;
  --good: #2a9d5c; --bad: #d1495b; --notice: #fdf3e4; --notice-line: #b7791f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e6e8ea; --soft: #a9aeb4; --line: #353a40; --mark: #7db4ee;
    --notice: #2b2415; --notice-line: #d9a441;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 1rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 1rem 0 0.5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
p { margin: 0 0 0.75rem; max-width: 48rem; }
a { color: var(--mark); }
small { color: var(--soft); font-size: 0.8em; font-weight: normal; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: 0.5rem; background: var(--card); padding: 0.5rem; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
header > p { font-size: 1.05rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; padding: 0; margin: 1rem 0 0; }
nav a { display: inline-block; padding: 0.3rem 0; }
.grid { display: grid; margin: 0 0 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; margin: 0 auto; color: var(--ink); }
figcaption { color: var(--soft); font-size: 0.875rem; margin-top: 0.5rem; }
.missing { color: var(--soft); border-left: 3px solid var(--line); padding-left: 0.75rem; }
.notice { max-width: 56rem; background: var(--notice); border-left: 4px solid var(--notice-line); padding: 0.75rem 1rem; margin: 0 0 1rem; }
.notice p { max-width: none; }
.notice p:last-child, .notice ul { margin: 0; }
.notice ul { padding-left: 1.1rem; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 0.875rem; padding-bottom: 0.35rem; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: normal; }
td { white-space: nowrap; }
thead th { color: var(--soft); vertical-align: bottom; }
thead th small { white-space: normal; }
th[scope="row"] { text-align: left; }
.heat th, .heat td { padding: 0.35rem 0.6rem; }
.heat th { white-space: nowrap; }
@media (max-width: 30rem) { th, td { padding-right: 0.6rem; font-size: 0.875rem; } .heat th, .heat td { padding: 0.35rem 0.28rem; font-size: 0.8rem; } }
.heat tbody td { background: rgb(42 157 92 / calc(0.05 + 0.4 * var(--heat))); }
.settings { columns: 17rem; column-gap: 2rem; margin: 0; font-size: 0.9rem; }
.settings div { display: flex; justify-content: space-between; gap: 1rem; padding: 0.2rem 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
.settings dt { color: var(--soft); }
.settings dd { margin: 0; text-align: right; }
.settings .changed dd { font-weight: 600; }
.settings small { display: block; }
.gallery { list-style: none; padding: 0; margin: 0 0 1.5rem; display: grid; gap: 0.9rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
.gallery p { font-size: 0.875rem; color: var(--soft); margin: 0.15rem 0 0; }
.gallery strong { color: var(--ink); }
.row { display: grid; grid-template-columns: repeat(11, minmax(0, 1fr)); gap: 3px; max-width: 42rem; }
.row img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-bottom: 3px solid transparent; }
.row img:first-child { border-bottom-color: var(--ink); }
@media (max-width: 30rem) { .row { grid-template-columns: repeat(6, minmax(0, 1fr)); } }
.row img.right { border-bottom: 3px solid var(--good); }
.row img.wrong { border-bottom: 3px dashed var(--bad); }
@media print { nav, .skip { display: none; } body { max-width: none; } figure { break-inside: avoid; } }
"""
