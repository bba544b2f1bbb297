// Keep the end in view while an answer grows, unless the reader has scrolled away.

const NEAR_PX = 48;

export class Follower {
  /** `latest` is the button that brings the reader back to the end. */
  constructor(scroller, latest) {
    this.scroller = scroller;
    this.latest = latest;
    this.following = true;
    scroller.addEventListener("scroll", () => this.look(), { passive: true });
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.leave(), { passive: true });
    latest.addEventListener("click", () => this.jump());
  }

  look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.latest.hidden = this.following;
  }

  /** An upward turn of the wheel counts at once, before it has moved the page. */
  leave() {
    if (this.scroller.scrollHeight > this.scroller.clientHeight) this.following = false;
  }

  jump() {
    this.following = true;
    this.grown();
  }

  /** To be called after the content has grown. */
  grown() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.latest.hidden = this.following;
  }
}
