"""What the service is measured against: other ways to serve the same networks, each as small as its library allows."""

from pathlib import Path

RTMLIB_DETECTOR = "rtmdet-nano_person.onnx"
RTMLIB_POSE = "pp-tinypose_256x192.onnx"
YOLO = "yolov8n-pose.safetensors"


def library_files(name: str, peers: Path, initial: Path) -> list[Path]:
    """The files that a contender's networks come from, where they are not this project's."""
    if name == "rtmlib":
        return [peers / RTMLIB_DETECTOR, peers / RTMLIB_POSE]
    return [initial / YOLO] if name.startswith("yolo") else []
