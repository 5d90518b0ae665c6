# A machine image for EKS nodes: Amazon Linux 2023 as EKS publishes it, with the baked volume as its second disk and the units that
# mount it before containerd starts. Nodes need no snapshot id and no user data of ours.
#
#   builder bake disk data.img --target al2023-volume --oci REPOSITORY:TAG=layout/ --size 120GiB
#   packer init packer/aws/al2023-ami.pkr.hcl
#   packer build -var-file data.img.auto.pkrvars.json -var kubernetes_version=1.34 packer/aws/al2023-ami.pkr.hcl
#
# An AMI carries no initialisation rate; the launch template or the EC2NodeClass sets it.
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
  description = "Name of the AMI; the content hash is added."
}

variable "region" {
  type = string
}

variable "disk_file" {
  type        = string
  description = "The raw disk that builder bake made; DISK.setup.sh lies beside it."
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
  type = string
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
  description = "The disk's: an image for another machine would not start."
}

variable "instance_type" {
  type    = string
  default = "c6i.large"
}

variable "builder_size" {
  type        = number
  default     = 64
  description = "GiB of the root volume of every node, for the time of the build too."
}

variable "kubernetes_version" {
  type    = string
  default = "1.34"
}

variable "variant" {
  type        = string
  default     = "nvidia"
  description = "standard, nvidia or neuron."
}

variable "ami_owner" {
  type        = string
  default     = "602401143452"
  description = "Account of Amazon EKS."
}

source "amazon-ebs" "node" {
  region          = var.region
  instance_type   = var.instance_type
  ssh_username    = "ec2-user"
  ami_name        = "${var.name}-${substr(var.content_sha256, 0, 12)}-${var.kubernetes_version}"
  ami_description = "builder: ${var.image_reference}"

  source_ami_filter {
    filters = {
      name                = "amazon-eks-node-al2023-${var.architecture}-${var.variant}-${var.kubernetes_version}-v*"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
    owners      = [var.ami_owner]
    most_recent = true
  }

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_size           = var.builder_size
    volume_type           = "gp3"
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }

  launch_block_device_mappings {
    device_name           = "/dev/xvdb"
    volume_size           = var.volume_size
    volume_type           = var.volume_type
    iops                  = var.iops
    throughput            = var.throughput
    delete_on_termination = true
  }

  tags = {
    Name                     = var.name
    "builder:content-sha256" = var.content_sha256
    "builder:image"          = var.image_reference
    "builder:image-digest"   = var.image_digest
  }
  snapshot_tags = {
    Name                     = var.name
    "builder:content-sha256" = var.content_sha256
  }
}

build {
  sources = ["source.amazon-ebs.node"]

  # on the instance
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
    environment_vars = ["DEVICE=/dev/xvdb"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  provisioner "shell" {
    script           = "${var.disk_file}.setup.sh"
    environment_vars = ["START=no"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  # What the disk passed through does not belong into the image, and cloud-init runs anew on each node.
  provisioner "shell" {
    inline = ["sudo rm -rf /var/tmp/disk /var/tmp/disk.tar.zst", "sudo cloud-init clean --logs"]
  }
  # end
}
