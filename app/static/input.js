/** The ways in which pictures come: dropped, chosen, pasted, photographed. */

import { byId } from "./dom.js";

/** @param {(files: File[]) => void} take */
export function takePictures(take) {
  const given = (files) => files.length > 0 && take([...files]);
  const chooser = byId("files");
  chooser.addEventListener("change", () => {
    given(chooser.files);
    chooser.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => given(event.clipboardData?.files ?? []));
  acceptDrops(given);
  offerCamera(given);
}

function acceptDrops(given) {
  const mark = (on) => byId("stage").classList.toggle("target", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    given(event.dataTransfer?.files ?? []);
  });
}

function offerCamera(given) {
  // Browsers give cameras to secure pages only, that is https and localhost.
  if (!navigator.mediaDevices?.getUserMedia) return;
  const [dialog, view, snap] = [byId("camera-dialog"), byId("camera-view"), byId("snap")];
  let facingMode = "environment";
  let opened = 0;

  const close = () => {
    opened += 1;
    snap.disabled = true; // until there is a frame
    for (const track of view.srcObject?.getTracks() ?? []) track.stop();
    view.srcObject = null;
  };
  const open = async () => {
    close();
    const turn = opened;
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode, width: { ideal: 1920 } } });
    if (turn === opened && dialog.open) view.srcObject = stream;
    else for (const track of stream.getTracks()) track.stop();
  };
  const start = () =>
    open().catch((error) => {
      dialog.close();
      dialog.dispatchEvent(new CustomEvent("refused", { detail: error.name }));
    });

  byId("camera").hidden = false;
  byId("camera").addEventListener("click", () => {
    dialog.showModal();
    start();
  });
  byId("turn-camera").addEventListener("click", () => {
    facingMode = facingMode === "user" ? "environment" : "user";
    start();
  });
  view.addEventListener("loadeddata", () => {
    snap.disabled = false;
    snap.focus();
  });
  snap.addEventListener("click", async () => {
    snap.disabled = true; // a second press would be a second picture
    const file = await snapshot(view).catch(() => null);
    dialog.close();
    if (file) given([file]);
  });
  dialog.addEventListener("close", close);
}

/** @param {HTMLVideoElement} view @returns {Promise<File>} */
async function snapshot(view) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
  canvas.getContext("2d").drawImage(view, 0, 0);
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(new File([blob], "camera.jpg", { type: blob.type })) : reject(new Error()));
    canvas.toBlob(done, "image/jpeg", 0.92);
  });
}
