"""What an answer that is kept is made with."""

from __future__ import annotations

from dataclasses import dataclass

from lmserve.service.answers.places import Place, Plan
from lmserve.service.answers.records import Ask, Narrator
from lmserve.service.answers.steering import Applied
from lmserve.service.generate import Service
from lmserve.service.generation import Generation
from lmserve.service.streams.stream import Stream
from lmserve.service.warm.warming import Warming


@dataclass(frozen=True, slots=True)
class Means:
    ask: Ask
    place: Place
    plan: Plan
    generation: Generation
    stream: Stream
    narrator: Narrator
    service: Service
    warmth: Warming
    applied: Applied | None  # the steers that it answers
