"""The page of a run: what stands on it for every way a run can end, and that nothing foreign gets out of its place."""

from __future__ import annotations

import re
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_toolkit.evaluation import JudgeCheck, agree, calibrate
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.compile import GeneratorResult
from dspy_toolkit.optimizers.settings import NoSearch
from dspy_toolkit.report import gather, render
from tests.report.looking import Seen, look
from tests.report.made import Desk, row, trial

LABELS = ("red", "green", "blue")


def answered(scores: list[int]) -> list[dict[str, Any]]:
    return [row(f"row-{i}", score, expected={"label": LABELS[i % 3]}) for i, score in enumerate(scores)]


BEFORE, AFTER = answered([0, 1, 0, 1, 0, 0]), answered([1, 0, 1, 1, 1, 0])


def test_a_promoted_run_says_everything(desk: Desk) -> None:
    demos = [{"augmented": True, "text": f"thing {i}", "label": "red"} for i in range(5)]
    run = desk.run(BEFORE, AFTER, state=desk.state("Say the colour.", demos))
    seen = look(desk.html(run, version=2))
    assert [text for level, text in seen.headings if level == 2] == [
        "Promoted",
        "Scores",
        "Search",
        "Prompts before and after",
        "By expected value",
        "Won and lost",
        "Cost",
        "Choice of the optimizer",
        "Profile",
    ]
    assert "Better than the champion: +6.7 points." in seen.text
    assert "Version 2 is the champion now." in seen.text
    assert seen.table("Mean scores") == [
        ["program", "validation", "sealed test", "faults"],
        ["baseline", "20.0 %", "–", "–"],
        ["champion", "33.3 % (23.3 to 43.3, 6 rows)", "33.3 % (23.3 to 43.3, 6 rows)", "–"],
        ["candidate", "66.7 % (56.7 to 76.7, 6 rows)", "66.7 % (56.7 to 76.7, 6 rows)", "–"],
        ["keyword rule (a simple rule)", "–", "29.2 %", "–"],
    ]
    assert "−1.5 to +14.8 points" in seen.text
    assert "Before is version 1, the champion." in seen.text
    assert "Classify." in seen.text and "Say the colour." in seen.text
    assert "5 demonstrations" in seen.text and "3 more" in seen.text
    assert seen.table("label, on the sealed test")[1:] == [
        ["red", "2", "1 of 2 (50.0 %)", "2 of 2 (100.0 %)", "+50.0"],
        ["green", "2", "1 of 2 (50.0 %)", "1 of 2 (50.0 %)", "+0.0"],
        ["blue", "2", "0 of 2 (0.0 %)", "1 of 2 (50.0 %)", "+50.0"],
    ]
    assert "Of 6 rows of the sealed test, 3 scored higher after and 1 lower." in seen.text
    assert {(3, "Won: 3"), (3, "Lost: 1")} <= set(seen.headings)
    assert "These rows are sealed" in seen.text
    assert [line[1] for line in seen.table("Every candidate")[1:]] == ["baseline", "candidate 1", "candidate 2"]
    assert "gepa comes first" in seen.text
    assert "Compiling spent 70 of 300 logical LM calls (light); 290 were predicted." in seen.text


def test_the_costs_of_the_steps_add_up(desk: Desk) -> None:
    head, *lines, total = look(desk.html(desk.run(BEFORE, AFTER))).table("What each step")
    assert head[0] == "step"
    assert lines[0] == ["probe", "30", "–", "2,000", "100", "–"]
    assert lines[1] == ["compile (gepa)", "70", "60", "7,000", "350", "12 s"]
    assert lines[2] == ["candidate on validation", "6", "3", "600", "30", "1 min 15 s"]
    assert total == ["all", "124", "72", "11,400", "570", "5 min 12 s"]


def test_a_run_refused_on_validation_shows_validation_and_no_sealed_row(desk: Desk) -> None:
    run = desk.run(AFTER, BEFORE, sealed=False, outcome="refused")
    seen = look(desk.html(run))
    assert seen.headings[1] == (2, "Refused")
    assert "The sealed test was not opened." in seen.text
    assert "Of 6 rows of validation, 1 scored higher after and 3 lower." in seen.text
    assert "These rows are sealed" not in seen.text
    assert seen.table("label, on validation")
    assert "sealed" not in " ".join(line[0] for line in seen.table("What each step"))


def test_an_unchanged_run_has_its_search_and_no_comparison(desk: Desk) -> None:
    run = desk.run(outcome="unchanged", compiled={"changed": False, "val_mean": 0.2, "exhausted": True})
    seen = look(desk.html(run))
    assert seen.headings[1] == (2, "Unchanged")
    assert not seen.section("Won and lost") and not seen.section("By expected value")
    assert "Nothing changed: of 2 candidates the best reached 50.0%" in seen.text
    assert "The budget ran out before the search was through." in seen.text
    assert seen.table("Mean scores")[2] == ["best found", "20.0 %", "–", "–"]
    assert (3, "The predictor: unchanged") in seen.headings


def test_a_run_that_compiled_nothing_says_why(desk: Desk) -> None:
    reason = "The program scores 100% as it is: there is nothing to gain."
    nothing = {"optimizer": "none", "trials": (), "usage": Usage(), "changed": False}
    run = desk.run(
        outcome="unchanged", champion=None, choice={"settings": NoSearch(), "reason": reason}, compiled=nothing
    )
    seen = look(desk.html(run))
    assert reason in seen.text
    assert "No candidate was scored." in seen.text
    assert "Nothing was spent on compiling." in seen.text
    assert "svg" not in seen.tags
    assert not seen.section("Scores")
    assert "Before is the baseline." in seen.text
    assert [line[0] for line in seen.table("What each step")] == ["step", "probe", "all"]


def test_the_pool_has_a_table_and_a_curve_for_each_generator(desk: Desk) -> None:
    generators = (
        GeneratorResult(
            name="mipro", verdict="won", reason="So it was.", mean=0.7, rows=20, candidates=2, lm_calls=200
        ),
        GeneratorResult(
            name="bootstrap", verdict="behind", reason="50 %.", mean=0.5, rows=8, candidates=1, lm_calls=90
        ),
        GeneratorResult(name="gepa", verdict="failed", reason="The reflector <broke>."),
    )
    trials = (
        trial("baseline", 0.2, 10, "baseline", tokens=100.0),
        trial("trial 1", 0.7, 200, "mipro", tokens=300.0, seconds=0.5),
        trial("4 demonstrations", 0.5, 90, "bootstrap", tokens=400.0),
    )
    compiled = {"optimizer": "race", "winner": "mipro", "generators": generators, "trials": trials}
    html = desk.html(desk.run(BEFORE, AFTER, compiled=compiled))
    seen = look(html)
    assert seen.table("The generators")[1:] == [
        ["mipro", "won", "2", "70.0 %", "20", "200", "So it was."],
        ["bootstrap", "behind", "1", "50.0 %", "8", "90", "50 %."],
        ["gepa", "failed", "0", "–", "0", "0", "The reflector <broke>."],
    ]
    assert html.count('<path class="steps') == 3
    assert seen.table("Candidates that no other")[1:] == [
        ["mipro", "trial 1", "70.0 %", "300", "0.50"],
        ["baseline", "baseline", "20.0 %", "100", "–"],
    ]
    assert "with as few tokens." in seen.text
    assert 'href="#pool"' in html


HOSTILE = [
    "<script>alert(1)</script>",
    "</div></section></body>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "</style><!-- <![CDATA[",
    "&lt;b&gt; &amp;amp; &#60;",
    "null\0 and \x1b[31m",
    "\u202eright to left\u2028 \ud83d\ude00",
    "日本語 naïve 👩‍👩‍👧",
    "x" * 10_000,
    "",
    " \n\n ",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text_wherever_it_stands(desk: Desk, text: str) -> None:
    """Inputs, answers, expected values, feedback, instructions, demonstrations, reasons, settings, names."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    odd = {"inputs": {"text": text, text or "name": text}, "expected": {"label": text}, "prediction": {"label": text}}
    before = [row("a", 0, feedback=text, **odd), row(text[:5], 1, **odd)]
    after = [row("a", 1, feedback=text, **odd), row(text[:5], 0, **odd)]
    generator = GeneratorResult(name=text, verdict="won", reason=text)
    run = desk.run(
        before,
        after,
        state=desk.state(text, [{"text": text, "label": text}]),
        choice={"reason": text, "alternatives": {text: text}},
        compiled={
            "generators": (generator,),
            "trials": (trial(text, 0.5, 3, text, tokens=4.0), trial(text, 0.6, 4, tokens=3.0)),
        },
    )
    plain = look(desk.html(desk.run(BEFORE, AFTER)))
    html = desk.html(run.model_copy(update={"name": text}), reason=text)
    seen = look(html)
    assert set(seen.tags) <= {*plain.tags, "details", "summary", "polygon", "span", "g"}
    assert "49" not in re.findall(r"\b49\b", seen.text) or "49" in text
    html.encode("utf-8")
    if text.strip() and len(text) < 100 and "\0" not in text:
        assert " ".join(text.split()) in " ".join(seen.text.split())


@pytest.mark.parametrize(
    "value", [None, True, 3.5, [], {}, ["a", {"b": None}], {"deep": {"er": [1, 2]}}, "", "x" * 10_000]
)
def test_answers_of_every_type_are_shown(desk: Desk, value: Any) -> None:
    before = [row("a", 0, prediction={"label": value}, expected={"label": value}, inputs={"text": value})]
    after = [row("a", 1, prediction=value, expected={"label": value}, inputs={"text": value})]
    seen = look(desk.html(desk.run(before, after)))
    assert "Won: 1" in seen.text
    if isinstance(value, str) and len(value) > 1_000:
        assert "(10,000 characters)" in seen.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_leaves_the_page_whole(desk: Desk, text: str) -> None:
    rows = [row("a", 0, inputs={"text": text}, prediction={"label": text}, feedback=text)]
    again = [row("a", 1, inputs={"text": text}, prediction={"label": text}, feedback=text)]
    html = desk.html(desk.run(rows, again, state=desk.state(text)), reason=text)
    assert look(html).tags.count("script") == 0


def test_what_is_no_longer_there_is_named_and_the_rest_stands(desk: Desk) -> None:
    run = desk.run(BEFORE, AFTER, state=desk.state("Gone."))
    desk.store.delete(run.compiled.program)
    comparison = run.comparison.sealed
    assert comparison is not None
    desk.store.delete(comparison.champion.rows)
    seen = look(desk.html(run))
    assert "The compiled program cannot be read. The store" in seen.text
    assert "The answers row by row cannot be read. The store" in seen.text
    assert not seen.section("Prompts before and after") and not seen.section("Won and lost")
    assert seen.section("Scores") and seen.section("Cost")


def test_without_the_program_before_the_other_side_stands(desk: Desk) -> None:
    from dspy_toolkit.report import gather, render

    run = desk.run(BEFORE, AFTER)
    made = desk.released(run, outcome="promoted", reason="Better.", version=2)
    seen = look(render(gather(made, desk.project, desk.store, None)))
    assert "The program before cannot be read" in seen.text
    assert "cannot be read" in seen.text and "Classify." in seen.text


def test_a_program_of_two_steps_shows_both(desk: Desk) -> None:
    class Steps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("text -> gist", "Shorten.")
            self.second = dspy.Predict("gist -> label", "Say.")

    desk.project = desk.project_of("", program=Steps)
    from dspy_toolkit.optimizers.states import state_of

    before, after = state_of(Steps()), state_of(Steps())
    after["second"]["signature"]["instructions"] = "Say the colour."
    after["second"]["demos"] = [{"label": "red", "gist": "a tomato"}]
    seen = look(desk.html(desk.run(BEFORE, AFTER, state=after), before))
    assert {(3, "first: unchanged"), (3, "second")} <= set(seen.headings)
    assert seen.text.index("a tomato") > seen.text.index("Say the colour.")
    assert re.search(r"gist\s*a tomato\s*label\s*red", seen.text), "inputs come before outputs"


def test_the_same_run_gives_the_same_page(desk: Desk) -> None:
    run = desk.run(BEFORE, AFTER)
    assert desk.html(run) == desk.html(run)


def test_light_and_dark_phones_and_paper(desk: Desk) -> None:
    """The styles that each of them needs are there, and every colour that is used has a value in both lights."""
    seen: Seen = look(desk.html(desk.run(BEFORE, AFTER)))
    light, dark = seen.style.split("@media (prefers-color-scheme: dark)")
    dark = dark.split("\n}\n")[0]
    used = set(re.findall(r"var\((--\w+)\)", seen.style))
    assert used
    for name in used:
        assert f"{name}:" in light and f"{name}:" in dark, name
    assert "@media print" in seen.style and "@media (max-width:" in seen.style
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in seen.attributes
    policy = [attrs["content"] for _, attrs in seen.attributes if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("light", [True, False])
def test_text_and_marks_stand_out_from_the_paper(desk: Desk, light: bool) -> None:
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for what a chart is read by."""
    style = look(desk.html(desk.run(BEFORE, AFTER))).style
    block = style.split("@media (prefers-color-scheme: dark)")[0 if light else 1]
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", block.split("* {")[0]))

    def contrast(one: str, other: str) -> float:
        bright, dim = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for paper in ("--paper", "--fill"):
        for text in ("--ink", "--soft", "--good", "--bad", "--even"):
            assert contrast(text, paper) >= 4.5, (text, paper)
    assert contrast("--k0", "--paper") >= 4.5, "links"
    for kind in range(8):
        assert contrast(f"--k{kind}", "--paper") >= 3, kind


def labelled(answers: list[str | None]) -> list[dict[str, Any]]:
    """Rows that expect red, green, blue in turn, with these answers; None is a reply that could not be read."""
    return [
        row(
            f"row-{i}",
            float(answer == LABELS[i % 3]),
            expected={"label": LABELS[i % 3]},
            prediction=answer and {"label": answer},
            status="ok" if answer else "parse_failure",
        )
        for i, answer in enumerate(answers)
    ]


def test_choices_have_precision_recall_and_a_confusion_table(desk: Desk) -> None:
    before = labelled(["red", "red", "red"] * 2)
    after = labelled(["red", "green", "blue", "red", None, "green"])
    seen = look(desk.html(desk.run(before, after)))
    assert seen.table("Precision, recall and F1 of label")[0] == ["class", "rows", "precision", "recall", "F1"]
    lines = {line[0]: line[1:] for line in seen.table("Precision, recall and F1 of label")[1:]}
    assert lines["red"][0] == "2" and lines["red"][1].startswith("100.0 % (") and lines["red"][3] == "100.0 %"
    assert lines["green"][1].startswith("50.0 % (") and lines["green"][2].startswith("50.0 % (")
    assert lines["blue"][3] == "66.7 %"
    assert seen.table("Confusion of label") == [
        ["expected", "red", "green", "blue", "no answer"],
        ["red", "2", "·", "·", "·"],
        ["green", "·", "1", "·", "1"],
        ["blue", "·", "1", "1", "·"],
    ]
    assert re.search(r"Macro-F1\s*champion 16\.7 % \(.*\), candidate 72\.2 % \(", seen.text)
    classes = [attrs.get("class") for tag, attrs in seen.attributes if tag == "td"]
    assert classes.count("number right s5") == 1 and classes.count("number wrong s2") == 2


def test_a_confidence_is_held_against_the_scores(desk: Desk) -> None:
    after = [row(f"row-{i}", float(i % 2), prediction={"label": "red", "confidence": 0.95}) for i in range(6)]
    seen = look(desk.html(desk.run([row(f"row-{i}", 1.0) for i in range(6)], after)))
    assert seen.table("Score by confidence") == [
        ["confidence", "rows", "its mean", "score"],
        ["90.0 % to 100.0 %", "6", "95.0 %", "50.0 %"],
    ]
    assert re.search(r"Expected calibration error\s*45\.0 %", seen.text)
    assert "Score by confidence" not in desk.html(desk.run([row("a", 1.0)], [row("a", 1.0)]))


def test_many_classes_are_a_list_of_confusions(desk: Desk) -> None:
    names = [f"class {number:02}" for number in range(30)]
    desk.project = desk.project_of(f"text: str -> label: Literal[{', '.join(map(repr, names))}]")
    after = [
        row(f"row-{number}-{again}", 0.0, expected={"label": name}, prediction={"label": names[number // 2]})
        for number, name in enumerate(names)
        for again in range(1 + (number == 29))
    ]
    seen = look(desk.html(desk.run(after, after)))
    rows = seen.table("Confusion of label: what")
    assert rows[0] == ["expected", "answered", "rows", "of the class"]
    assert rows[1] == ["class 29", "class 14", "2", "100.0 %"]
    assert len(rows) == 21


def test_an_output_that_is_no_choice_has_no_confusion(desk: Desk) -> None:
    desk.project = desk.project_of("text: str -> label: str")
    seen = look(desk.html(desk.run(BEFORE, AFTER)))
    assert not [table for table in seen.tables if table.caption.startswith("Confusion")]


def test_faults_measures_and_the_judges_calls_are_shown(desk: Desk) -> None:
    run = desk.run(BEFORE, AFTER)
    sealed = run.comparison.sealed
    assert sealed is not None
    more = {"errors": 2, "truncated": 3, "repeats": 4, "measures": {"position_bias": 0.25}}
    candidate = sealed.candidate.model_copy(update=more | {"judge_usage": Usage(lm_calls=12, prompt_tokens=900)})
    test = sealed.model_copy(update={"candidate": candidate})
    seen = look(desk.html(run.model_copy(update={"comparison": run.comparison.model_copy(update={"sealed": test})})))
    line = seen.table("Mean scores")[3]
    assert line[2].endswith("6 rows, 4 runs each)")
    assert line[3] == "2 could not be run, 3 cut at the longest reply"
    assert "Measured beside the score" in [text for _, text in seen.headings]
    assert re.search(r"position_bias\s*candidate 0\.25", seen.text)
    assert ["judging the candidate on the sealed test", "12", "0", "900", "0", "–"] in seen.table(
        "What each step asked"
    )


def test_a_judge_that_was_checked_is_shown_with_corrected_shares(desk: Desk) -> None:
    human = [1.0] * 25 + [0.0] * 15
    judged = [1.0] * 24 + [0.0] + [1.0] * 10 + [0.0] * 5
    check = JudgeCheck(
        metric="m", source="grades.csv", agreement=agree(judged, human), calibration=calibrate(judged, human)
    )
    run = desk.released(desk.run(BEFORE, AFTER))
    seen = look(render(gather(run, desk.project, desk.store, desk.state(), judge=check)))
    assert seen.section("The judge")
    assert "40 rows that people graded (grades.csv)" in seen.text
    assert re.search(r"Cohen's kappa\s*0\.33 \(", seen.text)
    assert re.search(r"Fails what people fail\s*33\.3 % \(", seen.text)
    assert re.search(r"Passes of the candidate\s*66\.7 % by the judge; corrected for its errors 0\.0 % \(", seen.text)
    assert not look(desk.html(desk.run(BEFORE, AFTER))).section("The judge")
