"""What an image holds: what fills it (report), and whether a secret or a model's weights are among it (scan)."""

from builder.image.finding import Finding as Finding
from builder.image.finding import ScanReport as ScanReport
from builder.image.finding import require_clean as require_clean
from builder.image.measure import report as report
from builder.image.report import ImageReport as ImageReport
from builder.image.report import require_budget as require_budget
from builder.image.scan import scan as scan
from builder.image.scan import scan_image as scan_image
