"""What every HTTP front shares: who is calling, how much may be sent, how an error is answered.

This room knows no framework and no points: it takes header values and bytes, and gives back
identities, unpacked bodies and finished error answers. ``protocol`` alone knows a server.
"""

from fieldring.http.errors import ErrorAnswer, answer
from fieldring.http.limits import ByteBudget, Places, Reservation, unpack, unpack_snappy
from fieldring.http.quota import Quotas
from fieldring.http.tokens import Identity, TokenBook, presented_token

__all__ = [
    "ByteBudget",
    "ErrorAnswer",
    "Identity",
    "Places",
    "Quotas",
    "Reservation",
    "TokenBook",
    "answer",
    "presented_token",
    "unpack",
    "unpack_snappy",
]
