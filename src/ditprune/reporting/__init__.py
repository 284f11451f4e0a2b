"""Results for people: the page of an evaluation, and the card of a pruned model.

- `page.py` makes one HTML file from results.json alone. It needs no network, and a content
  security policy forbids it any. The script and the style are ours, names and prompts are escaped
  by the template, and images must be data URIs. The page stays below 5 MB: if the gallery does not
  fit, its least bad samples are left out and the page says so.
- `load.py` checks results.json by a JSON schema before anything is drawn. The page can then trust
  every type, and a wrong value is refused in one line that names its position.
- `verdict.py` sums up a pruned model in one line, by rule: by whether 95 % intervals overlap, not
  by a test of the difference. It prefers to claim too little.
- `card.py` writes README.md of a pruned folder. It reads front matter with PyYAML, not with
  `huggingface_hub.ModelCard`: that class reorders keys, drops empty ones and raises on cards that
  are not well formed, and the card of someone else's model must not end a run.
- `commands.py` works from the plain JSON values of a manifest. The recipe is always given as
  `--recipe ditprune.json`, so there is no second list of its options to keep up to date. There is
  no command for values that `Recipe` or `Sampling` refuse.
- `formats.py` is the only place that formats numbers, sizes and durations, for `cli/` too.

Only `card.py`, `commands.py` and `formats.py` run when a model is pruned; the
others, and jinja2, matplotlib, Pillow and jsonschema, are imported when they are needed.
"""
