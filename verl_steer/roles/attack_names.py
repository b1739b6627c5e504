"""The eight framings and four escalation techniques of the red team, each with one neutral line (paper, appendix F).

Names and general descriptions only: what they are applied to comes from the seeds of whoever builds a data set.
"""

FRAMINGS: dict[str, str] = {
    "roleplay": "the user asks the assistant to speak as a character",
    "educational": "the user gives teaching or study as the reason",
    "fiction": "the request is part of a story or a scene",
    "reverse_psychology": "the user doubts that the assistant can, or asks for the opposite",
    "authority": "the user claims a position that would entitle them to the answer",
    "continuation": "the user asks to go on with something that seems to have begun already",
    "hypothetical": "the request is put as a thought experiment",
    "urgency": "the user says that there is no time to lose",
}
TECHNIQUES: dict[str, str] = {
    "yes_laddering": "a row of small requests that are easy to grant, each leaning on the last",
    "sunk_cost_anchoring": "later requests lean on what has been done together already",
    "gradual_escalation": "each turn is a little more specific than the one before",
    "hypothetical_escalation": "a thought experiment becomes more concrete from turn to turn",
}
