/** The server's word that it will not, or cannot, do what was asked. */
export class Refusal extends Error {
  /** @param {{ code: string, message: string, field?: string, retryable?: boolean, retry_ms?: number }} error */
  constructor({ code, message, field, retryable = false, retry_ms = 0 }) {
    super(message);
    this.name = "Refusal";
    this.code = code;
    this.field = field;
    /** The same may go well later, */ this.retryable = retryable;
    /** but not before this time. */ this.retryMs = retry_ms;
  }

  /** As the event `error` tells of it. */
  get detail() {
    const { code, message, field } = this;
    return field === undefined ? { code, message } : { code, message, field };
  }
}
