"""Values of the DLPM paper (arXiv 2501.14312v1), read off its vector graphics: Fig. 7.

The paper prints none of them. The error is about 0.3 % of an axis.
"""

from __future__ import annotations

from suite.reproduce.cluster import JAIN, SERVICE
from suite.reproduce.values import Quantity

P50, P99 = Quantity("P50, s", 1), Quantity("P99, s", 1)
QUANTITIES = (SERVICE, JAIN, P50, P99)
GPUS = (1, 2, 4, 8)

_FIG7 = """
          Preble                 RR+LPM                    VTC                      D2LPM
s1-tot    - 28373  62102  86787  18304 30106 49046  61235  12086 15494 21155 36478  18043 31894 55581 104710
s2-tot    - 30887  33102 118668  21962 37102 53617  44765  12526 17732 26358     -  16216 28853 58192  99475
s1-judge  - 21663  40828  60348   9724 19395 33862  53036   8772 16303 32223 52712   9293 21426 42911  69617
s2-judge  - 24402  47539  61906   9785 21776 35808  46841   8958 20103 32508 46779   9673 22294 44865  70052
s1-qa     - 51686 102326 233029  23203 49920 73687 132699   8651 18330 35839 68674  22038 48181 83294 160769
s2-qa     - 34849  63492  97392  20147 29179 48364  77366   8661 16623 31943 59680  17811 48186 62166 112187

s1-tot    -  .473   .470   .464   .446  .527  .541   .646   .966  .979  .986  .999   .842  .943  .918   .942
s2-tot    -  .468   .612   .553   .373  .359  .335   .337   .840  .857  .872     -   .816  .831  .864   .898
s1-judge  -  .399   .418   .860   .465  .514  .346   .415   .980  .857  .924  1.00   .980  .870  .795   .960
s2-judge  -  .372   .391   .476   .330  .330  .330   .368   .980  .845  .952  1.00   .980  .888  .781   .911
s1-qa     -  .732   .752   .747   .762  .768  .755   .746   1.00  .999  .999  .998   .976  .933  .971   .818
s2-qa     -  .868   .774   .909   .750  .701  .462   .553   .990  .996  1.00  .993   .872  .925  .911   .998

s1-tot    -   219    208    240    265   252   333    474     92   213   296   406     63    71    97    129
s2-tot    -   796   1109   1110    506   589  1072   5949   1150  1629  2245     -    637   627   812   1225
s1-judge  -   285    357    164    123   346   500    283     94   135   179   149     63    86   144    115
s2-judge  -   432    502    242    195   519   774    503     97   131   189   159     71    95   145    129
s1-qa     -    78     43     23    122   148   124    122    251   220   200   201     37    45    70     62
s2-qa     -   321    325    340    323   427   550    648    335   356   368   400     73    45   122    140

s1-tot    -   486    443    795    365   390   449    590    103   234   322   438     88   116   139    187
s2-tot    -  1050   1907   2248    670   850  1207   6125   1190  1732  2380     -    925  1074  1044   1553
s1-judge  -   378    464    280    153   398   573    360    150   211   276   243    148   177   282    243
s2-judge  -   511    627    392    229   572   852    591    160   207   282   260    138   236   322    276
s1-qa     -   282    257    244    269   277   335    467    496   451   396   399    235   235   259    245
s2-qa     -   475    484    616    361   567   652    802    723   712   735   772    262   235   336    367
"""
"""Blocks of `QUANTITIES`; in a line four systems, each on `GPUS`."""


def _read(text: str) -> dict[tuple[str, Quantity, str, int], float]:
    found = {}
    head, *blocks = (block.splitlines() for block in text.strip("\n").split("\n\n"))
    systems, first = head[0].split(), head[1:]
    for quantity, lines in zip(QUANTITIES, (first, *blocks), strict=True):
        for workload, *numbers in map(str.split, lines):
            places = ((system, gpus) for system in systems for gpus in GPUS)
            for (system, gpus), number in zip(places, numbers, strict=True):
                if number != "-":
                    found[workload, quantity, system, gpus] = float(number)
    return found


FIG7 = _read(_FIG7)
"""By workload, quantity, system and number of GPUs; what the paper leaves out is not there."""
