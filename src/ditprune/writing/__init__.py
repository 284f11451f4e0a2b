"""ALL OR NOTHING: files and folders that appear whole, and work that goes on after a kill.

    files         small files and folders: read, refused, or written beside and renamed
    tensors_file  named tensors as a safetensors file
    staging       a folder that takes long to write, with its journal
    unfinished    work beside a file that takes long to make
    identity      what must be the same for a run to continue another's work

A folder OUT grows as `.OUT.part`, with `.OUT.journal` beside it: a first line with the identity of
the run (versions, recipe, hashes and times of files), then a line for each tensor, appended after
its bytes. The same command reads the journal, hashes what it says is done, and does the rest; the
bytes are the same. Data is synchronised every 512 MB; what a power cut undoes shows in the hashes.
At the end: all on the disk, `written` in the journal, OUT to `.OUT.old`, `.OUT.part` to OUT, old
folder removed, journal removed. From every state between, the same command finishes. Another recipe
is refused until `--overwrite` drops the work. Ctrl-C keeps it; a refusal or a full disk removes it.
"""
