"""Checkpoints of this library and of other implementations, read, translated and written.

The way of a checkpoint, with the modules in that order:

1. `_weights` reads a file and finds the state dict in it, below the entries and prefixes that training loops add.
2. `_formats` recognizes its format by a few names that no other format has.
3. A `Format` (`_format`) translates it to this library's names, and back: rules that rename entries (`_names`), and
   changes of what is stored (`_changes`, `_heads`). `_translation` keeps the account of both.
4. `_load` compares the result with a model and loads it; `_convert` writes it in another format. `_classes` selects
   rows of class heads in between, `_variant` tells which model a state dict belongs to, and `_reports` says what
   happened.

Each implementation has a module of tables: `_own`, `_original`, `_hugging_face`, `_mmdetection`, `_detrex`.
"""
