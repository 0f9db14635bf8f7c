/** The service's own p, which every client without one of its own is routed by. */

import { changeConfig, readConfig } from "./api.js";
import { byId } from "./dom.js";
import { explain } from "./sentences.js";
import { forgetToken, keepToken, sendable, token } from "./tokens.js";

export class Config {
  #etag = "";
  #p = null;
  #onChange;

  /** @param {(p: number) => void} onChange hears the service's p whenever it is read */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("service-p").addEventListener("input", () => this.#drawSlider());
    byId("config").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#apply();
    });
    if (token("admin")) this.#askToken("");
  }

  /** @returns {Promise<boolean>} whether the settings are known now */
  async read() {
    try {
      this.#take(await readConfig(), { keepSlider: this.#turned() });
      return true;
    } catch (problem) {
      note(explain(problem, "The service’s settings"));
      return false;
    }
  }

  #turned() {
    const slider = byId("service-p");
    // A slider stands on a multiple of its step, and so beside a p like 0.333.
    return this.#p !== null && Math.abs(slider.valueAsNumber - this.#p) > 0.501 * slider.step;
  }

  #take({ config, etag }, { keepSlider = false } = {}) {
    this.#etag = etag;
    this.#p = config.p;
    byId("service-p").disabled = false;
    if (!keepSlider) byId("service-p").value = String(config.p);
    this.#drawSlider();
    this.#onChange(config.p);
  }

  #drawSlider() {
    const turned = this.#turned();
    const asked = byId("service-p").valueAsNumber.toFixed(2);
    byId("service-p-value").textContent = turned ? `${this.#p.toFixed(2)} → ${asked}` : asked;
    byId("apply").disabled = !turned;
  }

  async #apply() {
    const p = byId("service-p").valueAsNumber;
    const given = byId("admin-token").value.trim();
    if (given && !sendable(given)) return note("A token has letters, digits and signs without spaces or accents.");
    if (given) keepToken("admin", given);
    byId("apply").disabled = true;
    const before = this.#p;
    try {
      this.#take(await changeConfig({ p }, this.#etag));
      note(`Turned from ${before.toFixed(2)} to ${p.toFixed(2)}; it holds for whoever is routed from now on.`);
    } catch (problem) {
      await this.#failed(problem, p);
    }
  }

  async #failed(problem, p) {
    this.#drawSlider();
    if (problem.status === 401) {
      const refused = token("admin") !== "";
      forgetToken("admin");
      this.#askToken(refused ? "The service refuses this token." : "Turning the service’s p needs its admin token.");
      byId("admin-token").focus();
    } else if (problem.status === 412) {
      await this.read();
      note(`Somebody else changed the settings meanwhile: p is ${this.#p.toFixed(2)} now. Turn it to ${p.toFixed(2)} all the same?`);
    } else {
      note(explain(problem, "The change"));
    }
  }

  #askToken(why) {
    byId("admin-row").hidden = false;
    byId("admin-token").value = token("admin");
    note(why);
  }
}

function note(text) {
  byId("config-note").textContent = text;
}
