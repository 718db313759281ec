"""The layouts of data sets: where images and masks are, and the options that only some layouts have."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segtrain.config import cityscapes
from segtrain.config.sections import Count, Section

Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]
Label = int | str
IGNORE = "ignore"
NONE = "none"
MAX_MASK_VALUE = 65535  # of 16-bit masks
RAW_IGNORED = 65535  # where a reader gives class numbers: what it gives for 'ignore' and, with multi-label, 'none'
RAW_NONE = 65534

LayoutName = Literal[
    "folders", "lists", "table", "cityscapes", "voc", "ade20k", "coco", "cvat", "mask_per_class", "shards"
]
Meaning = Literal["none", "present", "ignore"]  # of a value in the mask file of one class

# Keys of the data section that only some layouts read: elsewhere they would be ignored, so they are refused.
LAYOUTS_OF_KEYS: dict[str, tuple[str, ...]] = {
    "images": ("folders", "mask_per_class"),
    "masks": ("folders",),
    "mask_end": ("folders",),
    "table": ("table",),
    "cityscapes": ("cityscapes",),
    "voc": ("voc",),
    "coco": ("coco",),
    "cvat": ("cvat",),
    "mask_per_class": ("mask_per_class",),
    "shards": ("shards",),
    "name_map": ("cityscapes", "coco", "cvat"),
    "label_map": ("folders", "lists", "table", "cityscapes", "voc", "ade20k", "shards"),
    "colors": ("folders", "lists", "table", "voc", "shards"),
}


class TableConfig(Section):
    """A CSV or Parquet table with a line for each sample; further columns are kept."""

    file: str | None = Field(
        None, description="under root; null: data.splits names a table for each split, and the split column is not read"
    )
    image: str = Field("image", min_length=1, description="column of the image's path, relative to root")
    mask: str = Field("mask", min_length=1, description="column of the mask's path, relative to root")
    split: str = Field("split", min_length=1, description="column that holds the values of data.splits")


class CityscapesConfig(Section):
    """Which of the masks of Cityscapes are read."""

    labels: Literal["ids", "train_ids"] = Field("ids", description="*_labelIds.png or *_labelTrainIds.png")
    annotations: Literal["gtFine", "gtCoarse"] = "gtFine"


class VocConfig(Section):
    """Which of the masks of Pascal VOC are read."""

    masks: str = Field("SegmentationClass", min_length=1, description="folder of the palette PNGs under root")


class CocoConfig(Section):
    """How the regions of a COCO file become one class for each pixel, the smaller of two on top; or labels."""

    unlabeled: str = Field(
        description="class, 'ignore', or 'none' where classes may overlap, of pixels outside of all regions"
    )
    others: str | None = Field(
        None,
        description="class, 'ignore', or 'none' where classes may overlap, of categories that are no class and not in "
        "name_map; null: an error",
    )
    crowd: Literal["ignore", "class"] = Field(
        "ignore", description="what the pixels of crowd regions are, where no other region lies"
    )
    masks: dict[str, str] = Field(
        default_factory=dict, description="panoptic files alone; split: folder of its PNGs under root"
    )
    images: dict[str, str] = Field(
        default_factory=dict, description="split: folder of its images under root; those not listed: root itself"
    )


class CvatConfig(Section):
    """Where the images of an export of CVAT are, which holds none unless asked."""

    images: str = Field("JPEGImages", min_length=1, description="folder of the images under root")


class MaskPerClassConfig(Section):
    """Masks with a file of its own for each class: where they are, and how they become one class for each pixel."""

    pattern: str = Field(
        "masks/{class}/{split}/{name}.png",
        description="path of a class's mask under root; {name} is the image's path below its split, without suffix",
    )
    values: dict[int, Meaning] = Field({0: "none", 1: "present"}, description="what values mean; others are errors")
    missing: Literal["error", "absent"] = Field(
        "error", description="an image without the file of a class: an error, or the class is not in it"
    )
    overlap: Literal["error", "first", "last"] = Field(
        "error", description="labels: exclusive: of classes that overlap the first, or last, of data.classes counts"
    )
    unlabeled: str | None = Field(
        None, description="labels: exclusive: class, or 'ignore', of pixels in no file's class; null: an error"
    )

    @field_validator("pattern")
    @classmethod
    def _names_class_and_image(cls, pattern: str) -> str:
        try:
            fields = {field for _, field, _, _ in Formatter().parse(pattern) if field is not None}
        except ValueError as error:
            raise ValueError(f"{pattern!r} is no pattern ({error})") from None
        unknown = fields - {"class", "split", "name"}
        if unknown or not {"class", "name"} <= fields:
            raise ValueError(f"{pattern!r} must hold {{class}} and {{name}}, and may hold {{split}}, but nothing else")
        return pattern

    @field_validator("values")
    @classmethod
    def _values_of_files(cls, values: dict[int, Meaning]) -> dict[int, Meaning]:
        if "present" not in values.values() or not all(0 <= raw <= MAX_MASK_VALUE for raw in values):
            raise ValueError(
                f"values maps values in the files, 0 to {MAX_MASK_VALUE}, to none, present or ignore, and one of them "
                "must be present: such as {0: none, 255: present}"
            )
        return values


class ShardsConfig(Section):
    """Which members of a tar file are image and mask: what follows the key and its dot in their names."""

    image: str | None = Field(
        None, min_length=1, description="such as jpg or rgb.png; null: image.*, else what is no mask"
    )
    mask: str | None = Field(
        None, min_length=1, description="such as png or seg.png; null: mask.*, else png beside an image of another kind"
    )

    @model_validator(mode="after")
    def _two_files(self) -> ShardsConfig:
        for key, extension in (("image", self.image), ("mask", self.mask)):
            if extension is not None and extension.startswith("."):
                raise ValueError(f"{key}: {extension!r}: without the dot after the key: {extension.lstrip('.')!r}")
        if self.image is not None and self.mask is not None and self.image.lower() == self.mask.lower():
            raise ValueError(f"image and mask are both {self.image!r}: a sample has a file of each")
        return self


class LayoutSection(Section):
    """Where images and masks are, and how masks name their classes: the first part of the data section."""

    root: str = Field(min_length=1, description="folder of the data set; relative to the current folder")
    layout: LayoutName = Field("folders", description="how images and masks are kept: see data/README.md")
    images: str = Field(
        "images",
        description="folder of the images under root (layouts folders, mask_per_class); {split} in it: the sub-folder",
    )
    masks: str = Field(
        "masks", description="folder of the masks under root (layout: folders); {split} in it: the sub-folder"
    )
    mask_end: str = Field(
        "", description="what the stems of masks have more than those of images, such as _mask (layout: folders)"
    )
    splits: dict[str, str] = Field(
        default_factory=lambda: {"train": "train", "val": "val", "test": "test"},
        description="split name: sub-folder, list, table, value of a column, COCO file or tar files, as the layout "
        "wants it",
    )
    table: TableConfig = TableConfig()
    cityscapes: CityscapesConfig = CityscapesConfig()
    voc: VocConfig = VocConfig()
    coco: CocoConfig | None = None
    cvat: CvatConfig = CvatConfig()
    mask_per_class: MaskPerClassConfig = MaskPerClassConfig()
    shards: ShardsConfig = ShardsConfig()
    label_map: dict[int, Label] | None = Field(
        None,
        description="raw mask value: class name, class number or 'ignore', with multi-label also 'none' (of the "
        "classes); values not listed are errors",
    )
    name_map: dict[str, Label] | None = Field(
        None,
        description="a name of the data set (layouts cityscapes, coco, cvat) that is no class: class or 'ignore'",
    )
    colors: dict[str, Color | tuple[Color, ...]] | None = Field(
        None, description="class or 'ignore': RGB colour in the masks, or a list of these; other colours are errors"
    )
    bands: tuple[Count, ...] | None = Field(
        None, description="bands of the image files that become channels, counted from 1; default: all"
    )

    @field_validator("label_map")
    @classmethod
    def _values_of_masks(cls, label_map: dict[int, Label] | None) -> dict[int, Label] | None:
        outside = [raw for raw in label_map or {} if not 0 <= raw <= MAX_MASK_VALUE]
        if outside:
            raise ValueError(
                f"masks hold values from 0 to {MAX_MASK_VALUE}, so none can be {', '.join(map(str, outside[:5]))}: "
                "the keys are the values in the mask files"
            )
        return label_map

    @model_validator(mode="after")
    def _layout_reads_all(self) -> LayoutSection:
        changed = self.changed_keys()
        for key, layouts in LAYOUTS_OF_KEYS.items():
            if key in changed and self.layout not in layouts:
                raise ValueError(f"{key}: belongs to layout: {' or '.join(layouts)}, and the layout is {self.layout}")
        if self.layout == "coco" and self.coco is None:
            raise ValueError("coco: missing; say what pixels without annotation are, such as {unlabeled: background}")
        if self.colors is not None and self.label_map is not None:
            raise ValueError("colors: masks hold either colours (colors) or numbers (label_map); drop one of the two")
        if self.name_map and self.label_map is not None:
            raise ValueError("name_map: label_map says by itself what each value is; drop one of the two")
        return self

    @model_validator(mode="after")
    def _splits_are_known(self) -> LayoutSection:
        for key in ("images", "masks") if self.coco is not None else ():
            unknown = [split for split in getattr(self.coco, key) if split not in self.splits]
            if unknown:
                raise ValueError(f"coco.{key}: {', '.join(unknown)} not among data.splits: {', '.join(self.splits)}")
        return self

    @model_validator(mode="after")
    def _distinct_colors(self) -> LayoutSection:
        owners: dict[Color, str] = {}
        for color, label in self.color_table():
            if owners.setdefault(color, label) != label:
                raise ValueError(f"colors: {list(color)} stands for both {owners[color]} and {label}")
        return self

    def color_table(self) -> Iterator[tuple[Color, str]]:
        """Yield each colour of `colors` with its class name or 'ignore'."""
        for label, colors in (self.colors or {}).items():
            single = bool(colors) and isinstance(colors[0], int)
            for color in (colors,) if single else colors:
                yield color, label  # type: ignore[misc]  # mypy does not follow `single`

    def named_labels(self) -> Iterator[tuple[str, Label]]:
        """Yield where a class is named besides `classes`, and that name, number or 'ignore'."""
        for raw, label in (self.label_map or {}).items():
            yield f"label_map[{raw}]", label
        for name, label in (self.name_map or {}).items():
            yield f"name_map[{name}]", label
        for label in self.colors or {}:
            yield f"colors[{label}]", label
        if self.mask_per_class.unlabeled is not None:
            yield "mask_per_class.unlabeled", self.mask_per_class.unlabeled
        if self.coco is not None:
            yield "coco.unlabeled", self.coco.unlabeled
            if self.coco.others is not None:
                yield "coco.others", self.coco.others

    @property
    def holds_numbers(self) -> bool:
        """Whether the values of the mask files themselves are what label_map maps, not colours or regions."""
        return self.colors is None and self.layout not in ("coco", "cvat", "mask_per_class")

    def value_map(self, classes: tuple[str, ...]) -> dict[int, Label] | None:
        """What raw mask values mean, as the layout's reader gives them; None: they are the class numbers.

        Raises:
            ValueError: labels of Cityscapes without a meaning.
        """
        if not self.holds_numbers:
            return {**{number: number for number in range(len(classes))}, RAW_IGNORED: IGNORE}
        if self.label_map is not None:
            return self.label_map
        if self.layout == "cityscapes":
            return cityscapes.raw_labels(classes, self.name_map or {}, labels=self.cityscapes.labels)
        if self.layout == "ade20k":
            return {0: IGNORE} | {number + 1: number for number in range(len(classes))}
        return None

    def layout_key(self) -> dict[str, Any]:
        """Everything on which samples and raw masks depend besides root and split, as plain values."""
        return self.model_dump(mode="json", include=set(LayoutSection.model_fields) - {"root", "splits"})
