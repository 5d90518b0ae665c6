# A snapshot of a baked data volume, for accounts where the EBS direct APIs may not be used.
#
#   builder bake disk data.img --oci REPOSITORY:TAG=layout/ --size 120GiB
#   packer init packer/aws/data-volume.pkr.hcl
#   packer build -var-file data.img.auto.pkrvars.json packer/aws/data-volume.pkr.hcl
#
# An ordinary Linux instance gets an empty EBS volume, writes the disk's non-zero blocks onto it, reads them back, and is
# thrown away; the volume becomes a snapshot. Bottlerocket itself is never started: it has no shell. Serves the targets
# bottlerocket and al2023-volume.
# Lines between "packer >= 1.8" and "end" use arguments that Packer 1.6 lacks; between "on the instance" and "end", a login.

# packer >= 1.8
packer {
  required_version = ">= 1.8.0"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.8.0"
    }
  }
}
# end

variable "name" {
  type        = string
  description = "Name of the snapshot."
}

variable "region" {
  type = string
}

variable "disk_file" {
  type        = string
  description = "The raw disk that builder bake made."
}

variable "volume_size" {
  type        = number
  description = "GiB; the size of the disk."
}

variable "volume_type" {
  type    = string
  default = "gp3"
}

variable "iops" {
  type    = number
  default = 6000
}

variable "throughput" {
  type    = number
  default = 600
}

variable "content_sha256" {
  type        = string
  description = "Content hash of the disk's non-zero blocks."
}

variable "image_reference" {
  type    = string
  default = ""
}

variable "image_digest" {
  type    = string
  default = ""
}

variable "architecture" {
  type        = string
  default     = "x86_64"
  description = "Of the instance that writes; the disk's own is as good as any."
}

variable "instance_type" {
  type    = string
  default = "c6i.large"
}

variable "device" {
  type        = string
  default     = "/dev/sdf"
  description = "Where the volume appears; amazon-ec2-utils and Debian's udev rules make this name on Nitro instances too."
}

variable "builder_size" {
  type        = number
  default     = 64
  description = "GiB of the instance's own disk; holds the archive and the sparse disk, thus twice the non-zero bytes."
}

variable "ami_name" {
  type    = string
  default = "debian-12-*"
}

variable "ami_owner" {
  type        = string
  default     = "136693071363"
  description = "Account of the Debian project."
}

variable "ssh_username" {
  type    = string
  default = "admin"
}

source "amazon-ebsvolume" "data" {
  region        = var.region
  instance_type = var.instance_type
  ssh_username  = var.ssh_username

  source_ami_filter {
    filters = {
      name                = var.ami_name
      architecture        = var.architecture
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
    owners      = [var.ami_owner]
    most_recent = true
  }

  # The instance's own disk, larger than the image's; this builder knows no other block for it.
  ebs_volumes {
    device_name           = "/dev/xvda"
    volume_size           = var.builder_size
    volume_type           = "gp3"
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }

  ebs_volumes {
    device_name           = var.device
    volume_size           = var.volume_size
    volume_type           = var.volume_type
    iops                  = var.iops
    throughput            = var.throughput
    delete_on_termination = true
    # packer >= 1.8
    snapshot_volume      = true
    snapshot_description = "builder: ${var.image_reference}"
    snapshot_tags = {
      Name                     = var.name
      "builder:content-sha256" = var.content_sha256
      "builder:image"          = var.image_reference
      "builder:image-digest"   = var.image_digest
    }
    # end
    tags = {
      Name                     = var.name
      "builder:content-sha256" = var.content_sha256
    }
  }
}

build {
  sources = ["source.amazon-ebsvolume.data"]

  # on the instance
  # A sparse file of many GiB becomes an archive of what it holds.
  provisioner "shell-local" {
    inline = ["tar --create --sparse --zstd --file '${var.disk_file}.tar.zst' --directory \"$(dirname '${var.disk_file}')\" \"$(basename '${var.disk_file}')\""]
  }

  provisioner "file" {
    source      = "${var.disk_file}.tar.zst"
    destination = "/var/tmp/disk.tar.zst"
    generated   = true # made by the step before, so not there when the template is validated
  }

  provisioner "shell" {
    script           = "${path.root}/../write-disk.sh"
    environment_vars = ["DEVICE=${var.device}"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }
  # end
}
