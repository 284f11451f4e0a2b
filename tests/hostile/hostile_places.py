"""Places that cannot take a result: links, folders of others, read-only and full disks."""

from __future__ import annotations

from hostile_ground import Ground, add, hostile

WRITERS = "prune calibrate evaluate"
MAGNITUDE = ["--saliency", "magnitude"]

for name, place in {
    "the model": ".", "inside the model": "out", "inside its denoiser": "transformer/out",
    "above the model": "..",
}.items():  # fmt: skip
    for options in ([], ["--overwrite"]):
        add(f"OUT is {name} {' '.join(options)}", "prune", "lies in the model|names no new folder",
            lambda g, place=place, more=options: ["-o", g.model / place, *more])  # fmt: skip
add("OUT is /", "prune", "names no new folder", lambda g: ["-o", "/", "--overwrite"])
add("OUT is empty", "prune", "an empty text given", lambda g: ["-o", "", "--overwrite"])
add("OUT is a folder", "calibrate", "is a folder", lambda g: ["-o", g.model, "--overwrite"])
add("OUT has a name that is too long", WRITERS, "cannot be written|File name too long",
    lambda g: ["-o", g.out.with_name("x" * 300)])  # fmt: skip
add(
    "OUT has a name with no room for what lies beside",
    "prune calibrate",
    "cannot be written|File name too long",
    lambda g: ["-o", g.out.with_name("x" * 250)],
)
add(
    "OUT has a name with a line break",
    "prune",
    "exists",
    lambda g: (g.out.parent / "a\nerror: b").mkdir() or ["-o", g.out.parent / "a\nerror: b"],
)
add("OUT lies below a file", WRITERS, "Not a directory|does not exist|cannot be written",
    lambda g: ["-o", g.outside / "secret.txt" / "out"])  # fmt: skip
add("OUT has no folder", "calibrate", "its folder does not exist",
    lambda g: ["-o", g.out.parent / "no" / "out"])  # fmt: skip
add("OUT is a file", "prune", "exists",
    lambda g: ["-o", g.outside / "secret.txt"])  # fmt: skip
add("OUT is a file of others", "prune", "did not write|not a folder that",
    lambda g: ["-o", g.outside / "secret.txt", "--overwrite"])  # fmt: skip
add("OUT is a folder of others", "prune", "is not a folder that ditprune wrote",
    lambda g: ["-o", g.outside, "--overwrite"])  # fmt: skip
add("OUT is a file that exists", "calibrate", "exists",
    lambda g: ["-o", g.outside / "secret.txt"])  # fmt: skip
add("OUT is a file that exists", "evaluate", "cannot be written",
    lambda g: ["-o", g.outside / "secret.txt"])  # fmt: skip


@hostile("prune", "is a link")
def out_is_a_link_to_a_folder(ground: Ground) -> list[object]:
    ground.out.symlink_to(ground.outside)
    return ["--overwrite"]


@hostile("prune", "is a link")
def out_is_a_link_to_the_model(ground: Ground) -> list[object]:
    ground.out.symlink_to(ground.model)
    return ["--overwrite"]


@hostile("prune", "is a link")
def out_is_a_link_to_nothing(ground: Ground) -> None:
    ground.out.symlink_to("nothing")


@hostile("prune", "lies in the model")
def out_lies_in_the_model_by_way_of_a_link(ground: Ground) -> list[object]:
    way = ground.out.parent / "way"
    way.symlink_to(ground.model)
    return ["-o", way / "out"]


@hostile("prune", "link")
def journal_is_a_link_to_a_file_of_others(ground: Ground) -> None:
    ground.out.with_name(".out.journal").symlink_to(ground.outside / "secret.txt")


@hostile("prune", "link")
def part_is_a_link_to_a_folder_of_others(ground: Ground) -> None:
    ground.out.with_name(".out.part").symlink_to(ground.outside)


@hostile("calibrate", "link")
def work_is_a_link_to_a_folder_of_others(ground: Ground) -> None:
    ground.out.with_name(".out.work").symlink_to(ground.outside)
