"""Asking language models behind any OpenAI-compatible endpoint, and paying for no reply twice.

    asker = Asker(Endpoint(base_url="http://localhost:8000/v1", model="..."), out / "journal.jsonl")
    print(asker.estimate(requests))     # requests, tokens and price; nothing is sent
    print(asker.fill(requests))         # several at once; every reply is on disk when it counts
    entry = asker.settled(request)      # {"reply", "reason", ...}

A reply that `Request.fault` finds unusable is asked for again, up to ATTEMPTS times, and then
settled with its reason. 429, 5xx and broken connections are retried with growing pauses by the
`openai` client. A killed run goes on where it stopped.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ATTEMPTS = 3  # how often an unusable reply is asked for again, the first one included
MOST_FAILURES = 10  # requests in a row that get no reply before the run stops


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the model is, and what asking it may cost."""

    base_url: str  # ends with /v1
    model: str
    api_key: str = field(default="", repr=False)  # "" takes OPENAI_API_KEY
    concurrency: int = 8  # requests under way at once
    requests_per_minute: float = 0.0  # 0: no limit
    retries: int = 6  # of a request that got 429, 5xx or no reply, with growing pauses
    timeout: float = 120.0  # seconds
    max_tokens: int = 1024
    temperature: float = 0.7
    price_in: float = 0.0  # of a million prompt tokens
    price_out: float = 0.0  # of a million reply tokens

    def __post_init__(self):
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base_url {self.base_url!r} is no http address such as http://localhost:8000/v1"
            )
        if self.concurrency < 1 or self.requests_per_minute < 0:
            raise ValueError("concurrency must be positive and requests_per_minute not negative")

    @property
    def is_local(self) -> bool:
        """Whether what is sent stays on this machine."""
        host = urlsplit(self.base_url).hostname
        return host in ("localhost", "::1") or host.startswith("127.")

    def check_access(self, access: dict[str, str], allowed: Iterable[str] = ()):
        """Raise PermissionError if something would leave this machine that must not.

        `access` maps sources to their access tier: what is behind a registration or a data use
        agreement stays here, unless `allowed` names the source.
        """
        closed = {s: tier for s, tier in access.items() if tier != "open" and s not in set(allowed)}
        if closed and not self.is_local:
            names = ", ".join(f"{source} ({tier})" for source, tier in sorted(closed.items()))
            raise PermissionError(
                f"{names}: access is not open, so nothing of it may be sent to {self.base_url}; "
                "leave it out, use a model on this machine, or name it in `allowed` if its data "
                "use agreement permits this"
            )

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost, in the currency of the prices."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass(frozen=True, kw_only=True)
class Request:
    """One reply that is wanted: as JSON of a form, or as plain text."""

    id: str  # of what it is about; equal messages about two things are two requests
    messages: list[dict]  # as the chat API takes them
    name: str  # of the form
    schema: dict | None = None  # JSON schema of the reply; None for plain text
    fault: Callable[[str], str] = lambda reply: ""  # why it cannot be used ("what: detail"), or ""


@dataclass(kw_only=True)
class Bill:
    """What was, or would be, asked and paid."""

    requests: int = 0
    reused: int = 0  # replies that the journal had already
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0
    outcomes: Counter = field(default_factory=Counter)  # "done", or why not

    def __str__(self):
        ends = "; ".join(f"{n:,} {reason}" for reason, n in self.outcomes.most_common())
        return (
            f"{self.requests:,} requests ({self.reused:,} more in the journal), "
            f"{self.tokens_in:,} + {self.tokens_out:,} tokens, price {self.price:,.2f}; {ends}"
        )


class Asker:
    """Sends requests to one endpoint and keeps the replies in one journal."""

    def __init__(self, endpoint: Endpoint, journal: Path):
        self.endpoint, self.journal = endpoint, Journal(Path(journal))

    def estimate(self, requests: Iterable[Request]) -> Bill:
        """Return what `fill` would ask and about what it would cost; sends nothing.

        Tokens are estimated from characters (four per token, Chinese one and a half), replies as
        half of `max_tokens`; the journal knows what was really paid.
        """
        bill = Bill()
        for request in requests:
            if self.settled(request):
                bill.reused += 1
                continue
            bill.requests += 1
            bill.tokens_in += sum(map(_tokens_of, request.messages))
            bill.tokens_out += self.endpoint.max_tokens // 2
        bill.price = self.endpoint.price(bill.tokens_in, bill.tokens_out)
        return bill

    def fill(self, requests: Iterable[Request]) -> Bill:
        """Ask for every reply that the journal lacks; return what it took.

        Raises ConnectionError if the endpoint refuses the key or the model, or gives no reply
        MOST_FAILURES times in a row. Replies that came before are in the journal.
        """
        run = _Run(self._client(), _Pace(self.endpoint.requests_per_minute))
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            under_way = set()
            try:
                for request in requests:
                    under_way.add(pool.submit(self._ask, request, run))
                    if len(under_way) >= 2 * self.endpoint.concurrency:
                        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in under_way:
                    future.result()
            except BaseException:
                run.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        run.bill.price = self.endpoint.price(run.bill.tokens_in, run.bill.tokens_out)
        return run.bill

    def settled(self, request: Request) -> dict | None:
        """The usable reply or the last refusal; None while something is to be asked."""
        entry = None
        for attempt in range(ATTEMPTS):
            entry = self.journal.get(self._key(request, attempt))
            if entry is None or not entry["reason"]:
                break
        return entry

    def _ask(self, request: Request, run: "_Run"):
        """Ask until a reply can be used; replies of earlier runs count as asked."""
        for attempt in range(ATTEMPTS):
            key = self._key(request, attempt)
            entry = self.journal.get(key)
            if entry is not None:
                with run.lock:
                    run.bill.reused += 1
            elif run.stop.is_set():
                return
            else:
                run.pace.wait()
                entry = self._request(run.client, request, key)
                if "error" in entry:
                    self._fail(entry["error"], run)
                    return
                self.journal.add(entry)
                with run.lock:
                    run.failures = 0
                    run.bill.requests += 1
                    run.bill.tokens_in += entry["tokens_in"]
                    run.bill.tokens_out += entry["tokens_out"]
            if not entry["reason"]:
                break
        with run.lock:
            run.bill.outcomes[entry["reason"].partition(":")[0] or "done"] += 1

    def _fail(self, error: str, run: "_Run"):
        """Count a request without a reply; ConnectionError after too many in a row."""
        with run.lock:
            run.failures += 1
            run.bill.outcomes[f"no reply: {error}"] += 1
            if run.failures >= MOST_FAILURES:
                run.stop.set()
                raise ConnectionError(
                    f"{self.endpoint.base_url} gave no reply {MOST_FAILURES} times in a row "
                    f"({error}); what came before is in {self.journal.path}"
                )

    def _key(self, request: Request, attempt: int) -> str:
        endpoint = self.endpoint
        asked = [endpoint.model, endpoint.temperature, endpoint.max_tokens, request.messages]
        asked += [request.id, attempt]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()

    def _client(self):
        from openai import OpenAI

        endpoint = self.endpoint
        key = endpoint.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        return OpenAI(
            base_url=endpoint.base_url,
            api_key=key,
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
        )

    def _request(self, client, request: Request, key: str) -> dict:
        """Ask once; return a journal entry, or {"error"} where no reply came."""
        import openai

        endpoint, form = self.endpoint, {}
        if request.schema is not None:
            schema = {"name": request.name, "strict": True, "schema": request.schema}
            form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        try:
            reply = client.chat.completions.create(
                model=endpoint.model,
                messages=request.messages,
                max_tokens=endpoint.max_tokens,
                temperature=endpoint.temperature,
                **form,
            )
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise ConnectionError(
                f"{endpoint.base_url} refuses model {endpoint.model!r}: {error.message}; "
                "check the address, the key (OPENAI_API_KEY) and the name of the model"
            ) from error
        except openai.APIError as error:
            return {"error": _plain(error)}
        except ValueError as error:  # a reply that is no JSON at all
            return {"error": f"the reply cannot be read ({type(error).__name__})"}
        # A proxy's "rate limited" and a login page come with status 200 as well.
        choices = getattr(reply, "choices", None) or []
        message = getattr(choices[0], "message", None) if choices else None
        text = getattr(message, "content", 0) or ""
        if message is None or not isinstance(text, str):
            return {"error": f"no chat completion but {str(reply)[:80]!r}"}
        return {
            "key": key,
            "id": request.id,
            "name": request.name,
            "reply": text,
            "reason": request.fault(text),
            "finished": choices[0].finish_reason != "length",
            "tokens_in": reply.usage.prompt_tokens if reply.usage else 0,
            "tokens_out": reply.usage.completion_tokens if reply.usage else 0,
        }


def read_json_reply(reply: str, schema: dict) -> dict:
    """Return the JSON of a reply, also from a fenced block; ValueError says what is wrong."""
    import jsonschema

    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.strip())
    if not text:
        raise ValueError("empty reply")
    try:
        said = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    try:
        jsonschema.validate(said, schema)
    except jsonschema.ValidationError as error:
        raise ValueError(f"JSON of another form: {error.message}") from None
    return said


def _tokens_of(message: dict) -> int:
    parts = message["content"]
    texts = [parts] if isinstance(parts, str) else [part.get("text", "") for part in parts]
    text = "".join(texts)
    chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
    return round((len(text) - chinese) / 4 + chinese / 1.5)


def _plain(error) -> str:
    status = getattr(error, "status_code", None)
    return f"status {status}" if status else type(error).__name__


class Journal:
    """Replies on disk, one JSON object per line; a half-written last line is cut off.

    One process at a time: a second one gets BlockingIOError instead of paying for the same texts.
    """

    def __init__(self, path: Path):
        self.path, self.entries, self.lock = path, {}, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise BlockingIOError(
                f"{path} is in use by another run; wait for it or choose another file"
            ) from None
        self.file.seek(0)
        end = 0
        for number, line in enumerate(self.file, 1):
            if not line.endswith(b"\n"):
                break  # the run was killed while it wrote this
            try:
                entry = json.loads(line)
                self.entries[entry["key"]] = entry
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path} line {number} is no entry of a journal; move the file away"
                ) from None
            end += len(line)
        self.file.truncate(end)

    def get(self, key: str) -> dict | None:
        """Return the entry of `key`, None if it was never answered."""
        return self.entries.get(key)

    def add(self, entry: dict):
        """Append `entry`; it is on the disk when this returns."""
        with self.lock:
            self.file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())
            self.entries[entry["key"]] = entry

    def close(self):
        """Give the file free for another run."""
        self.file.close()


@dataclass
class _Run:
    """What the threads of one `fill` share."""

    client: object
    pace: "_Pace"
    bill: Bill = field(default_factory=Bill)
    failures: int = 0  # in a row
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)


class _Pace:
    """Keeps requests at least 60 / per_minute seconds apart."""

    def __init__(self, per_minute: float):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next, self.lock = time.monotonic(), threading.Lock()

    def wait(self):
        if not self.gap:
            return
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next)
            self.next = start + self.gap
        time.sleep(start - now)
