/** Brings the page's parts together. */

import { Album } from "./album.js";
import { readVersion } from "./api.js";
import { Config } from "./config.js";
import { byId } from "./dom.js";
import { takePictures } from "./input.js";
import { Live } from "./live.js";
import { say, unsay } from "./messages.js";
import { People } from "./people.js";
import { explain, explainWait } from "./sentences.js";
import { Split } from "./split.js";
import { Stage } from "./stage.js";
import { keepToken, sendable, token } from "./tokens.js";

const album = new Album();
const stage = new Stage(album);
const split = new Split(album);
const people = new People(album, (person) => (stage.picked = person), askPoseToken);
const config = new Config((p) => (split.own = p));

function draw() {
  stage.draw();
  split.draw();
  people.draw();
}

album.addEventListener("change", draw);
album.addEventListener("answer", ({ detail }) => unsay(`picture ${detail.picture.id}`));
album.addEventListener("wait", ({ detail: { picture, problem, seconds } }) => {
  say(`picture ${picture.id}`, explainWait(problem, seconds), { kind: "wait" });
});
album.addEventListener("failure", ({ detail: { picture, problem } }) => {
  if (problem.status === 401) return problem.secret === token("pose") ? askPoseToken() : album.retry();
  const again = problem.status === 0 || problem.status === 408 || problem.status >= 429;
  const action = again ? { label: "Try again", run: retry } : undefined;
  say(`picture ${picture.id}`, explain(problem, `“${picture.name}”`), { action });
});

function retry() {
  for (const picture of album.pictures) unsay(`picture ${picture.id}`);
  album.retry();
}

function askPoseToken() {
  const field = byId("pose-token");
  if (!byId("pose-token-form").hidden) return; // another picture's answer has asked
  const refused = token("pose") !== "";
  byId("pose-token-form").hidden = false;
  say("token", refused ? "The service refuses this token." : "This service asks for a token before it takes pictures.");
  field.focus();
}

byId("pose-token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("pose-token").value.trim();
  if (!sendable(given)) return say("token", "A token has letters, digits and signs without spaces or accents.");
  keepToken("pose", given);
  byId("pose-token-form").hidden = true;
  unsay("token");
  album.retry();
});

byId("clear").addEventListener("click", () => {
  for (const picture of album.pictures) unsay(`picture ${picture.id}`);
  album.clear();
  byId("files").focus();
});

byId("camera-dialog").addEventListener("refused", ({ detail }) => {
  const why = detail === "NotAllowedError" ? "The browser was told not to give it" : "There is none, or it is in use";
  say("camera", `No camera. ${why}.`);
});

takePictures((files) => {
  const pictures = files.filter((file) => file.type === "" || file.type.startsWith("image/"));
  for (const file of files.filter((one) => !pictures.includes(one))) say(`file ${file.name}`, `“${file.name}” is not a picture.`);
  if (pictures.length) album.add(pictures);
});

/** Joints are drawn with lines once the service has said which; it may still be starting. */
async function learnSkeleton() {
  if (people.edges.length) return;
  const { skeleton } = await readVersion();
  people.edges = skeleton;
  stage.edges = skeleton;
  people.draw({ force: true });
}

let seen = "";
new Live(async (settings) => {
  learnSkeleton().catch(() => {}); // the next look tries again, as with the settings
  if (settings !== seen && (await config.read())) seen = settings;
});
draw();
