"""People who don't exist, with names from all over the world."""

import random
import unicodedata
from collections.abc import AsyncIterator

from services.user.cli.csv_file import Row

# The first and second parts of the names in a region, and what is between them. After the colon: how the part
# is written in an email, where that is not the part without its accents.
_REGIONS = (
    ("Ada Grace Oliver Emma Liam", "Lovelace Hopper Smith Taylor O'Brien:obrien", " "),
    ("María José Lucía Diego Sofía", "García Muñoz Fernández Peña Núñez", " "),
    ("Zoé François Chloé Étienne Hélène", "Dupré Lefèvre Bélanger Noël Garçon", " "),
    ("Jürgen Käthe Björn Åsa Søren:soren", "Müller Weiß:weiss Ångström Sørensen:sorensen Lindström", " "),
    ("Zofia Łukasz:lukasz Jiří Žofie Ștefan", "Wójcik Kowalczyk Dvořák Černý Ionescu", " "),
    ("Ольга:olga Иван:ivan Юрій:yuriy", "Іваненко:ivanenko Коваль:koval Шевченко:shevchenko", " "),
    ("Ελένη:eleni Γιώργος:giorgos Μαρία:maria", "Παπαδάκης:papadakis Νικολάου:nikolaou", " "),
    ("فاطمة:fatima محمد:mohammed ليلى:layla", "حسن:hassan منصور:mansour خليل:khalil", " "),
    ("דוד:david מרים:miriam נועה:noa", "לוי:levi כהן:cohen פרץ:peretz", " "),
    ("अर्जुन:arjun प्रिया:priya अनन्या:ananya", "शर्मा:sharma पटेल:patel गुप्ता:gupta", " "),
    ("สมชาย:somchai มาลี:malee", "ศรีสุข:srisuk แสงทอง:saengthong", " "),
    ("Nguyễn Trần Phạm", "Hương Minh Đức:duc", " "),
    ("李:li 王:wang 張:zhang 陳:chen", "小龍:xiaolong 偉:wei 芳:fang 靜:jing", ""),
    ("佐藤:sato 鈴木:suzuki 高橋:takahashi", "さくら:sakura 翔太:shota 美咲:misaki", " "),
    ("김:kim 이:lee 박:park", "지훈:jihoon 서연:seoyeon 민준:minjun", ""),
    ("Chidi Amara Thandiwe Wanjikũ", "Okafor Adébáyọ̀ Nkosi Mwangi Diallo", " "),
)

_DOMAINS = ("example.com", "example.net", "example.org")


async def demo_users(count: int, seed: int) -> AsyncIterator[Row]:
    """Yield `count` users: the same ones for the same seed, and no email twice, whatever the seeds are."""
    choose = random.Random(seed).choice  # noqa: S311 (not a secret)
    for number in range(1, count + 1):
        first_parts, second_parts, between = choose(_REGIONS)
        first, first_latin = _part(choose(first_parts.split()))
        second, second_latin = _part(choose(second_parts.split()))
        email = f"{first_latin}.{second_latin}.{seed}-{number}@{choose(_DOMAINS)}"
        yield Row(number, f"{first}{between}{second}", email)


def _part(text: str) -> tuple[str, str]:
    name, colon, latin = text.partition(":")
    if not colon:
        latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return name, latin
