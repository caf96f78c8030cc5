"""The page's style sheet and its script."""

STYLE = """
:root { --ink: #1b2430; --muted: #55606e; --line: #dfe4ea; --paper: #ffffff; --ground: #f4f6f8; --blue: #0072b2;
  --pale: #dce9f5; --wrong: #b3261e; --right: #00795a; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 0 20px 56px; }
header { background: var(--paper); border-bottom: 1px solid var(--line); margin-bottom: 24px; }
header > div { max-width: 1120px; margin: 0 auto; padding: 32px 20px 20px; }
h1 { font-size: clamp(1.6rem, 4.2vw, 2.3rem); line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0 0 4px; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 75ch; }
.kicker { color: var(--muted); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; margin: 0 0 4px; }
.quiet, .note { color: var(--muted); }
.note { font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: 6px 16px; margin-top: 14px; font-size: .92rem; }
a { color: #005a8e; text-underline-offset: 3px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px;
  margin-bottom: 20px; scroll-margin-top: 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 18px 0 4px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; background: #fafbfc; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.card.main { background: var(--pale); border-color: #b9d3ea; }
.card span { color: var(--muted); font-size: .88rem; line-height: 1.4; display: block; }
.card.main span { color: #37475a; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px 28px; }
.triple { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px 24px; }
.triple > div, .pair > div { min-width: 0; }
.legend { display: flex; align-items: center; flex-wrap: wrap; gap: 4px 22px; font-size: .86rem;
  color: var(--muted); margin: 2px 0 6px; max-width: none; }
.legend b { line-height: 1; }
.ramp { display: inline-block; width: 110px; height: 10px; border-radius: 3px; margin: 0 4px; }
.scroll + h3, .legend + h3 { margin-top: 22px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.tall { max-height: 640px; overflow-y: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem; vertical-align: bottom; }
th, td { padding: 8px 12px 8px 0; border-bottom: 1px solid var(--line); }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
.tall th, .tall td { padding-left: 12px; }
.tall thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; box-shadow: 0 1px 0 var(--line); }
tbody th { color: var(--ink); font-size: .95rem; font-weight: 500; overflow-wrap: break-word; min-width: 92px; }
tbody th small { display: block; color: var(--muted); font-weight: 400; font-size: .84rem; }
tr.main th, tr.main td { background: #eef5fb; }
tr.main th { font-weight: 700; box-shadow: inset 3px 0 0 var(--blue); padding-left: 12px; }
td.number, th.number { text-align: right; white-space: nowrap; padding-right: 16px; }
.bar { display: flex; align-items: center; gap: 10px; justify-content: flex-end; }
.bar i { flex: 1 1 90px; max-width: 200px; min-width: 24px; height: 9px; border-radius: 5px; background: #e8ecf1;
  overflow: hidden; }
.bar i::before { content: ""; display: block; height: 100%; width: var(--share); background: #7fb3db; }
tr.main .bar i::before { background: var(--blue); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 8px 0 0; font-size: .93rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre { background: #f4f6f8; border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; font-size: .86rem;
  line-height: 1.5; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0 14px; }
.plot { min-width: var(--least, 0); max-width: var(--most, none); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 22px 28px;
  margin-top: 14px; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; }
figure { margin: 0; font-size: .78rem; line-height: 1.3; }
.thumbs img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #10151b;
  border-radius: 6px; border: 3px solid transparent; margin-bottom: 3px; }
.thumbs img.small { image-rendering: pixelated; }
.thumbs .wrong img { border: 3px solid var(--wrong); }
.thumbs figcaption { overflow-wrap: anywhere; }
.wrong figcaption { color: var(--wrong); font-weight: 600; }
.right figcaption { color: var(--muted); }
footer { color: var(--muted); font-size: .88rem; }
@media (max-width: 640px) {
  main { padding: 0 10px 40px; } header > div { padding: 22px 16px 16px; }
  section { padding: 16px 14px; border-radius: 10px; }
  .optional { display: none; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: 8px; }
  .card { padding: 10px 12px; } .card b { font-size: 1.35rem; }
  .bar i { display: none; }
  th, td { padding: 7px 8px 7px 0; } td.number, th.number { padding-right: 8px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; } nav { display: none; } }
"""

SCRIPT = """
for (const box of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(box.querySelector("script").textContent);
  const options = { responsive: true, displayModeBar: false, scrollZoom: false };
  Plotly.newPlot(box.querySelector("div"), figure.data, figure.layout, options);
}
"""
