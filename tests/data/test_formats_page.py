"""The commands in the table of formats of docs/data.md run on folders of these forms."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from rpn_jax import cli
from tests.data import test_voc, test_yolo
from tests.data.coco_folder import annotation_file, box_entry, image_entry, write_coco_folder
from tests.golden_files import BCCD

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "data.md").read_text().split("## Formats")[1].split("\n\n**COCO.**")[0]
ROWS = [line.split(" | ") for line in TABLE.splitlines() if "rpn-jax" in line]
COMMANDS = {row[0].strip("| "): row[-1].strip("` |") for row in ROWS}


def coco(root, split):
    return write_coco_folder(root, [image_entry(1)], [box_entry(1, 1, [9, 9, 20, 20])], split)


def move(folder, target):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    shutil.rmtree(folder)


def write_bccd():
    Path("examples").mkdir()
    Path("examples/bccd").symlink_to(BCCD)


def write_roboflow():
    for split in ("train", "valid"):
        root = coco(Path("data/roboflow"), split)
        annotation_file(root, split).rename(root / split / "_annotations.coco.json")
    (root / "annotations").rmdir()


def write_flat():
    for split in ("train", "val"):
        root = coco(Path("data/flat"), split)
        move(root / split, root / "images")


def write_any():
    for split in ("train", "val"):
        root = coco(Path("data/any"), split)
        move(root / split, root / "pixels")
        annotation_file(root, split).rename(root / f"{split}.json")


def write_lvis():
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        root = coco(Path("data/coco"), folder)
        file = annotation_file(root, folder)
        content = json.loads(file.read_text())
        for image in content["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{folder}/{name}"
            image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
        Path("data/lvis").mkdir(exist_ok=True)
        Path(f"data/lvis/lvis_v1_{split}.json").write_text(json.dumps(content))
        file.unlink()


def write_voc():
    root = Path("data/VOC2007")
    for split in ("trainval", "test"):
        write_xml_picture(root / "Annotations", root / "JPEGImages", split)
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(split)


def write_xml_next_to_pictures():
    for split in ("train", "valid"):
        write_xml_picture(Path("data/xml", split), Path("data/xml", split), split)


def write_xml_picture(annotations, pictures, stem):
    test_voc.write_xml(annotations / f"{stem}.xml", [test_voc.xml_object("cat", (9, 9, 30, 30))])
    test_voc.write_picture(pictures / f"{stem}.jpg", 1)


def write_yolo():
    root = Path("data/yolo")
    for split in ("train", "val"):
        label_file = root / "labels" / split / "a.txt"
        test_yolo.write_picture(root / "images" / split / "a.jpg", test_yolo.LABELS, label_file)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


def write_several():
    write_bccd()
    write_voc()
    write_yolo()


def write_tfds():
    pytest.importorskip("tensorflow_datasets")
    from tests.data import test_tfds

    inside = {"bbox": test_tfds.features.BBoxFeature(), "label": test_tfds.CLASSES}
    examples: dict[str, list] = {
        split: [({}, [test_tfds.box(0, label=1)])] for split in ("train", "test")
    }
    test_tfds.prepare(Path("data/tfds").resolve(), "voc/2007", {}, "objects", inside, examples)


WRITERS = {
    "COCO": write_bccd,
    "COCO from Roboflow": write_roboflow,
    "COCO, all pictures in one folder": write_flat,
    "COCO, any other layout": write_any,
    "LVIS": write_lvis,
    "Pascal VOC": write_voc,
    "Pascal VOC, other folders": write_xml_next_to_pictures,
    "YOLO": write_yolo,
    "TensorFlow Datasets": write_tfds,
    "Several datasets as one": write_several,
}


def test_every_format_has_a_command():
    assert COMMANDS.keys() == WRITERS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_the_command_of_a_format_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    WRITERS[name]()
    program, *words = shlex.split(COMMANDS[name])
    assert program == "rpn-jax"
    assert cli.main(words) == 0, capsys.readouterr()
    assert "no problems found" in capsys.readouterr().out
