import io
from collections.abc import Iterator

from rich.console import Console as RichConsole

from agentflow.view.console import LiveConsole, PlainConsole, columns, duration, open_console

METRICS = {
    "iteration": 3, "success/mean": 0.5, "reward/raw": 0.25, "loss": None, "tokens/sampled": 3000,
    "time/rollout_s": 2.0, "time/update_s": 1.0, "failed/tool": 0.02, "failed/policy": 0.01,
    "groups/unsolved_fraction": 0.75,
}  # fmt: skip


def pipe() -> RichConsole:
    return RichConsole(file=io.StringIO(), width=80)


def terminal(width: int) -> RichConsole:
    return RichConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={"TERM": "xterm"})


def printed(output: RichConsole) -> str:
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


def ticking(step_s: float) -> Iterator[float]:
    now_s = 0.0
    while True:
        yield now_s
        now_s += step_s


def test_columns_say_what_matters_and_mark_what_is_missing() -> None:
    assert columns(METRICS) == {
        "success": "0.500", "heldout": "-", "unsolved": "75%", "raw": "0.250", "shaped": "-", "loss": "-", "kl": "-",
        "entropy": "-",
        "tokens/s": "1,500", "seconds": "3.0", "turns": "-", "failed": "3.0%",
    }  # fmt: skip


def test_a_pipe_gets_one_plain_line_an_iteration() -> None:
    output = pipe()
    clock = ticking(10.0)
    with PlainConsole(output, num_iterations=23, clock=lambda: next(clock)) as console:
        console.iteration(METRICS)
        console.iteration({**METRICS, "iteration": 5})
    numbers = "success 0.500 · unsolved 75% · raw 0.250 · tokens/s 1,500 · seconds 3.0 · failed 3.0%"
    # The first row may stand for any number of iterations; the second for two, in two ticks of the clock.
    assert printed(output) == f"iteration 3/23 · {numbers}\niteration 5/23 · {numbers} · left 3m00s\n"


def test_a_pipe_is_not_flooded_by_progress() -> None:
    output = pipe()
    clock = ticking(8.0)
    console = PlainConsole(output, clock=lambda: next(clock))
    for done in range(9):
        console.progress(done, 9, "rollout")
    assert 0 < printed(output).count("rollout") <= 3


def test_text_is_never_markup_and_never_wrapped_in_a_pipe() -> None:
    output = pipe()
    PlainConsole(output).note("[bold]x[/bold] " + "y" * 200)
    assert printed(output) == "[bold]x[/bold] " + "y" * 200 + "\n"


def test_a_terminal_shows_rows_below_a_header() -> None:
    output = terminal(120)
    with LiveConsole(output, num_iterations=5) as console:
        console.iteration(METRICS)
        console.note("[red]plain[/red]")
        console.progress(1, 4, "rollout")
    text = printed(output)
    assert "rollout" in text
    assert "success" in text
    assert "0.500" in text
    assert "3/5" in text
    assert "[red]plain[/red]" in text


def test_a_narrow_terminal_drops_whole_columns() -> None:
    output = terminal(45)
    with LiveConsole(output) as console:
        console.iteration(METRICS)
    text = printed(output)
    assert "heldout" in text
    assert "loss" not in text


def test_a_terminal_of_one_column_shows_what_matters_most() -> None:
    output = terminal(1)
    with LiveConsole(output) as console:
        console.iteration(METRICS)
    assert "0.500" in printed(output)


def test_the_console_fits_its_output() -> None:
    assert isinstance(open_console(output=pipe()), PlainConsole)
    assert isinstance(open_console(output=terminal(80)), LiveConsole)
    dumb = RichConsole(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(open_console(output=dumb), PlainConsole)


def test_no_color_is_respected() -> None:
    environ = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    output = RichConsole(file=io.StringIO(), force_terminal=True, width=100, _environ=environ)
    with LiveConsole(output) as console:
        console.iteration(METRICS)
    assert "\x1b[3" not in printed(output)


def test_the_time_left_is_learned_from_iterations_not_from_the_start() -> None:
    output = pipe()
    clock = iter([0.0, 0.0, 100.0, 100.0, 110.0, 110.0])
    console = PlainConsole(output, num_iterations=5, clock=lambda: next(clock))
    console.iteration({"iteration": 0, "heldout/success": 0.5})
    console.iteration({"iteration": 1})
    assert printed(output) == "iteration 0/5 · heldout 0.500\niteration 1/5 · left 40s\n"


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.2, 59.4, 200, 7500)] == ["0s", "59s", "3m20s", "2h05m"]
