"""The whole story in a terminal: `make demo`.

An owner trains a classifier, seals it and gives the key to a broker. A cloud
operator, whom nobody trusts, runs it. A user verifies it and asks. Then we look
at what the operator saw. Every command is the real one, run as shown.

Nothing is left behind but `demo-output/`.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import digits
import numpy as np
import screen
import wire
from stage import DemoError, Stage, free_port

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("OCCLUDE_BINARY", ROOT / "target" / "release" / "occlude"))
LIBRARY = "libonnxruntime.so.1.32.0"
OUTPUT = ROOT / "demo-output"

SIMULATED = "THE TEE IS SIMULATED: THIS SHOWS HOW IT WORKS AND PROTECTS NOTHING"
CHANNEL = "/.well-known/occlude/channel"
REFUSED = 3


def main() -> int:
    # An ending by signal unwinds like any other, so that processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    if not BINARY.exists():
        screen.say(f"{BINARY} is missing: run `make demo`, which builds it")
        return 1
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    screen.say()
    screen.loud(SIMULATED)
    screen.say()
    screen.explain(
        "Every command is the real one, run as shown. Digests and public keys are shortened for reading; "
        f"the files in {OUTPUT.name}/ have them whole."
    )
    try:
        with Stage(BINARY, OUTPUT) as stage:
            tell(stage)
    except DemoError as error:
        screen.say(f"\nthe demonstration failed: {error}")
        return 1
    except KeyboardInterrupt:
        screen.say("\ninterrupted")
        return 130
    screen.say()
    screen.loud(SIMULATED)
    screen.say(f"\nDone in {time.monotonic() - began:.0f} s. Nothing is left running; the files are in {OUTPUT.name}/.")
    return 0


def tell(stage: Stage) -> None:
    data = digits.load()
    the_owner_makes_and_seals_a_model(stage, data)
    broker = the_owner_starts_a_broker(stage)
    the_broker_refuses_an_altered_server(stage, broker)
    server = the_broker_releases_the_key(stage, broker)
    the_user_refuses_a_look_alike(stage, data)
    the_user_verifies_and_asks(stage, data, server)


def the_owner_makes_and_seals_a_model(stage: Stage, data: digits.Digits) -> None:
    screen.heading("1. The owner makes a model and seals it")
    classifier = digits.train(data, hidden=(256, 128), iterations=40, seed=7)
    digits.export(classifier, stage.folder / "model.onnx")
    accuracy = classifier.score(data.test_images, data.test_labels)
    parameters = sum(part.size for part in classifier.coefs_ + classifier.intercepts_)
    screen.explain(
        f"A classifier of handwritten digits, trained just now on {len(data.training_labels):,} images and "
        f"exported to ONNX: {parameters:,} parameters, right on {accuracy:.1%} of "
        f"{len(data.test_labels)} images that it never saw."
    )
    screen.say()
    stage.run("keygen", "-o", "owner.key")
    stage.run("seal", "model.onnx", "-o", "model.occ", "--key", "owner.key", "--id", "digits")
    screen.say()
    screen.explain("What anybody who holds the sealed file can learn from it:")
    stage.run("inspect", "model.occ")


def the_owner_starts_a_broker(stage: Stage) -> str:
    screen.heading("2. The owner's broker holds the key, and a policy says who may have it")
    measurement = hashlib.sha256(BINARY.read_bytes()).hexdigest()
    owner = public_key(stage, "owner.key")
    write_policy(stage.folder / "policy.toml", measurement, owner)
    screen.explain("The policy: this build of Occlude, serving this owner's model, and no other.")
    screen.output((stage.folder / "policy.toml").read_text())
    screen.say()
    url = start_broker(stage, "broker")
    stage.run("broker", "add-model", "model.occ", "--key", "owner.key", "--broker", url)
    stage.run("broker", "set-policy", "policy.toml", "--key", "owner.key", "--broker", url)
    return url


def the_broker_refuses_an_altered_server(stage: Stage, broker: str) -> None:
    screen.heading("3. The operator alters the server: the broker keeps the key")
    altered = stage.folder / "altered"
    altered.mkdir()
    shutil.copy2(BINARY.parent / LIBRARY, altered / LIBRARY)
    (altered / "occlude").write_bytes(BINARY.read_bytes() + b"\0")
    (altered / "occlude").chmod(0o755)
    screen.explain("The same program with one byte appended: it runs, but it measures as another.")
    process = stage.start(
        "altered-server.log", "serve", "--model", "model.occ", "--broker", broker,
        "--tee", "simulated", "--listen", f"127.0.0.1:{free_port()}",
        binary=altered / "occlude", shown="altered/occlude",
    )
    try:
        status = process.wait(60)
    except subprocess.TimeoutExpired:
        raise DemoError("the altered server went on without a key") from None
    screen.output(stage.log("altered-server.log"))
    if status != REFUSED:
        raise DemoError(f"the altered server ended with {status}, expected {REFUSED}")
    shutil.rmtree(altered)
    screen.refused("refused: its measurement is not in the owner's policy (exit code 3)")


def the_broker_releases_the_key(stage: Stage, broker: str) -> int:
    screen.heading("4. The genuine server gets the key")
    port = start_server(stage, "server", "model.occ", broker)
    screen.done("the model is loaded, inside the (simulated) TEE only")
    screen.say()
    screen.explain("What the broker wrote down of both, in a log whose entries are chained by hash:")
    stage.run("broker", "audit", "--key", "owner.key", "--broker", broker)
    return port


def the_user_refuses_a_look_alike(stage: Stage, data: digits.Digits) -> None:
    screen.heading("5. The operator runs a look-alike: the user refuses it")
    screen.explain(
        "The genuine program, so its measurement is the right one; but the operator's own model under "
        "the same name, with the operator's own key and broker. Its answers would be the operator's to "
        "choose, and its inputs the operator's to read."
    )
    digits.export(digits.train(data, hidden=(16,), iterations=3, seed=1), stage.folder / "operator.onnx")
    stage.run("keygen", "-o", "operator.key", show=False)
    stage.run("seal", "operator.onnx", "-o", "operator.occ", "--key", "operator.key", "--id", "digits", show=False)
    measurement = hashlib.sha256(BINARY.read_bytes()).hexdigest()
    write_policy(stage.folder / "operator-policy.toml", measurement, public_key(stage, "operator.key"))
    broker = start_broker(stage, "operator-broker")
    stage.run("broker", "add-model", "operator.occ", "--key", "operator.key", "--broker", broker, show=False)
    stage.run("broker", "set-policy", "operator-policy.toml", "--key", "operator.key", "--broker", broker, show=False)
    port = start_server(stage, "look-alike", "operator.occ", broker)
    screen.say()
    screen.explain("The user has the owner's policy and asks the look-alike:")
    np.save(stage.folder / "image.npy", data.test_images[:1])
    with wire.RecordingProxy(("127.0.0.1", port)) as recorder:
        stage.run(
            "infer", f"http://127.0.0.1:{recorder.port}", "--model", "digits",
            "--policy", "policy.toml", "--input", "image=image.npy", expect=REFUSED,
        )
        if recorder.requests(CHANNEL):
            raise DemoError("the client sent a request to a server that it refused")
    screen.refused("refused before anything was sent (exit code 3)")


def the_user_verifies_and_asks(stage: Stage, data: digits.Digits, port: int) -> None:
    screen.heading("6. The user verifies the real server, then asks")
    with wire.RecordingProxy(("127.0.0.1", port)) as recorder:
        url = f"http://127.0.0.1:{recorder.port}"
        screen.explain("Everything goes through a proxy of the operator's, which records it.")
        stage.run("attest", "verify", url, "--policy", "policy.toml")
        screen.done("verified: this measurement, this owner, this model")
        screen.say()

        image = data.test_images[7:8]
        np.save(stage.folder / "image.npy", image)
        stage.run(
            "infer", url, "--model", "digits", "--policy", "policy.toml",
            "--input", "image=image.npy", "--output", "answer.npz", show=False,
        )
        show_the_answer(stage, image, int(data.test_labels[7]))
        screen.heading("7. What the operator saw")
        show_what_the_operator_saw(stage, recorder, image)


def show_the_answer(stage: Stage, image: np.ndarray, truth: int) -> None:
    with np.load(stage.folder / "answer.npz") as answer:
        label = int(answer["label"][0])
        probabilities = answer["probabilities"][0]
    screen.say()
    screen.side_by_side(screen.image(image[0], digits.ROWS, digits.COLUMNS), screen.bars(probabilities))
    screen.say()
    screen.done(f"the answer is {label}, with probability {probabilities[label]:.6f}; the image shows a {truth}")

    model = stage.folder / "model.onnx"
    plain_label, plain = digits.run_plain(model, image, prepacking=True)
    if label != plain_label or not np.allclose(probabilities, plain, rtol=1e-5, atol=1e-7):
        raise DemoError(f"plain ONNX Runtime says {plain_label} {plain}, Occlude said {label} {probabilities}")
    difference = float(np.max(np.abs(probabilities - plain)))
    _, same_layout = digits.run_plain(model, image, prepacking=False)
    exactly = np.array_equal(probabilities, same_layout)
    screen.done(
        "plain ONNX Runtime on the plain model says the same"
        + (": bit for bit with weights in the same layout, and" if exactly else ",")
        + f" within {difference:.0e} in its own"
    )


def show_what_the_operator_saw(stage: Stage, recorder: wire.RecordingProxy, image: np.ndarray) -> None:
    plain = (stage.folder / "model.onnx").read_bytes()
    sealed = (stage.folder / "model.occ").read_bytes()
    header, ciphertext = sealed[:4096], sealed[4096:]
    requests = recorder.requests(CHANNEL)
    if not requests:
        raise DemoError("no request was recorded")
    request = requests[-1]
    (stage.folder / "request-on-the-wire.bin").write_bytes(request)

    screen.explain("The sealed file: a public header, and behind it ciphertext.")
    screen.hex_dump(sealed, lines=4)
    screen.say("    ...")
    screen.hex_dump(sealed, start=4096, lines=4)
    screen.say()
    screen.explain(f"The request on the wire: a clear head, and {len(request):,} bytes of body.")
    screen.output(recorder.request_heads(CHANNEL)[-1])
    screen.say()
    screen.hex_dump(request, lines=5)
    screen.say()

    rows = [
        ("the plain model, model.onnx", plain),
        ("the sealed model's ciphertext, model.occ", ciphertext),
        ("the image as the user has it", image.tobytes()),
        ("the request as the operator has it", request),
    ]
    screen.say(f"    {'entropy, in bits a byte (8 is noise)':<44}{'bytes':>10}{'entropy':>10}")
    for name, data in rows:
        screen.say(f"    {name:<44}{len(data):>10,}{wire.entropy(data):>10.3f}")
    screen.say()

    seen = {"the sealed model": ciphertext, "the recorded wire": recorder.everything(), "the header": header}
    secrets = {
        "the tensor name `coefficient`": b"coefficient",
        "16 bytes of a weight tensor": plain[4096:4112],
        "16 bytes of the image": distinct_window(image.tobytes()),
    }
    for name, secret in secrets.items():
        found = [place for place, data in seen.items() if secret in data]
        if found:
            raise DemoError(f"{name} was found in {', '.join(found)}")
        screen.done(f"{name}: not in the sealed file, not on the wire")


def distinct_window(data: bytes) -> bytes:
    """Sixteen consecutive bytes, those with the most distinct values."""
    windows = (data[start : start + 16] for start in range(len(data) - 15))
    return max(windows, key=lambda window: len(set(window)))


def start_broker(stage: Stage, name: str) -> str:
    port = free_port()
    process = stage.start(
        f"{name}.log", "broker", "--listen", f"127.0.0.1:{port}", "--database", f"{name}.db"
    )
    stage.wait_until_listening(process, port, f"{name}.log")
    return f"http://127.0.0.1:{port}"


def start_server(stage: Stage, name: str, container: str, broker: str) -> int:
    port = free_port()
    process = stage.start(
        f"{name}.log", "serve", "--model", container, "--broker", broker,
        "--tee", "simulated", "--listen", f"127.0.0.1:{port}",
    )
    stage.wait_until_ready(process, port, f"{name}.log")
    return port


def public_key(stage: Stage, key: str) -> str:
    result = subprocess.run(
        [BINARY, "keygen", "--public", key], cwd=stage.folder, capture_output=True, text=True, check=True
    )
    return next(word for word in result.stdout.split() if word.startswith("occlude-owner1"))


def write_policy(path: Path, measurement: str, owner: str) -> None:
    """A policy that accepts simulated evidence, which must be spelled out."""
    path.write_text(
        f"""\
format = 1
reviewed = true

[evidence]
tee = ["simulated"]
trust = ["simulated"]
protection = ["confidential-memory"]
measurements = ["{measurement}"]

[service]
owners = ["{owner}"]
models = [{{ id = "digits", minimum-version = 1 }}]
"""
    )


if __name__ == "__main__":
    sys.exit(main())
